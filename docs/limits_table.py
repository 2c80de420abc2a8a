"""Writes docs/limits.md: `python -m docs.limits_table`. Caps come from the code that compares with them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from configs.settings import Settings
from docs.api_tables import table
from engine.logit_edits import MANY_LISTED
from engine.scheduler import MAX_TOLD_IN_STEP
from engine.server import limits
from engine.server.generation_body import Strict
from engine.server.large_work import LARGE_BYTES
from engine.server.limits import Cap
from engine.server.operations import OPERATIONS
from engine.server.responses.store import MAX_STORED, MAX_STORED_BYTES
from engine.tokenizer import ENCODED_TOGETHER

PAGE = Path(__file__).with_name("limits.md")

_INTRODUCTION = """\
# What one request may carry

<!-- Written by `make docs`; don't edit. -->

Every list, string, count and nesting that a request may bring has a cap. What is above one is refused with
400 before anything is made of it, by an error that names the field, the cap and what was sent:
`messages: at most 10000 entries, not 1000000.` A body that is too large as a whole gets 413. Caps are far
above what clients send, so few have a setting; those that follow from the model move with its flags.

## Any body of the engine's
"""

_WORK = f"""\
## Work that one request may cause

No request may take more than a stated share of a step or of the interpreter, whatever it asks for:

- **Bodies.** One over {{large}} KB is parsed, checked and rendered in a thread, one at a time; long work
  rests as long as it has worked. Long texts are encoded without holding the interpreter, {{together}} K
  characters at a time.
- **Logprobs of prompts.** A step tells at most {MAX_TOLD_IN_STEP} of them, alternatives included: the chunk
  of the prompt is as short as that takes. Only `-1` under `--max-logprobs -1` may pass it, by one position's.
- **Lists of tokens.** `logit_bias`, `allowed_token_ids` and `bad_words` are checked, tokenised and laid out
  once per request, not per choice. Beyond {{many}} entries a step applies them as one mask and one addition
  per row: less than the logits themselves cost. Of bad words of several tokens a step looks up one per
  length, and there are at most {limits.MAX_BAD_WORD_TOKENS} lengths.
- **Choices.** `n` choices hash, check and count their prompt once.
- **Stop strings.** A character costs the same however long they are.
"""

_DOOR = """\
## Berth's own door

What passes through Berth has to pass its engine's limits as well.
"""

# What, constant, unit, what a client gets.
_DOOR_CONSTANTS = (
    ("body that Berth reads itself (control routes)", "api.body_limit.MAX_BYTES", "bytes", "413"),
    ("body of another protocol that is translated", "api.protocols.app.MAX_BODY_BYTES", "bytes", "413"),
    ("body that the answer cache looks at", "api.response_cache.MAX_BODY_BYTES", "bytes", "passes uncached"),
    ("multipart: a part's headers", "api.form_scan._MAX_HEAD", "bytes", "400"),
    ("multipart: a model's name", "api.form_scan._MAX_VALUE", "bytes", "400"),
    ("multipart: the boundary", "api.form_scan._MAX_BOUNDARY", "bytes", "400"),
    ("a WebSocket's message", "api.websocket._MAX_MESSAGE_BYTES", "bytes", "closed"),
    ("an engine's response head", "api.upstream.MAX_HEAD_BYTES", "bytes", "502"),
)
_DOOR_SETTINGS = ("max_body_mb", "max_connections", "max_queue", "max_in_flight", "max_wait")


def render() -> str:
    heads = ("what", "at most", "setting", "above it")
    work = _WORK.format(large=LARGE_BYTES >> 10, together=ENCODED_TOGETHER >> 10, many=MANY_LISTED)
    parts = [
        _INTRODUCTION,
        table(heads, _general()),
        "## By field\n",
        table(("field", "at most", "of"), _fields()),
        work,
        _DOOR,
        table(("what", "at most", "above it"), _door_constants()),
        table(("setting", "default", ""), _door_settings()),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _general() -> Iterator[tuple[str, ...]]:
    tokens = "`--max-model-len`"
    yield "the body, decoded where it is compressed", f"{limits.MAX_BODY_BYTES} bytes", "", "413"
    yield "lists and objects in its JSON", str(limits.MAX_JSON_CONTAINERS), "", "400"
    yield "fields of objects in its JSON", str(limits.MAX_JSON_MEMBERS), "", "400"
    yield "values in its JSON", str(limits.MAX_JSON_VALUES), "", "400"
    yield "nesting", f"{limits.MAX_JSON_DEPTH} levels", "", "400"
    yield "fields of the body", str(limits.MAX_FIELDS), "", "400"
    text = f"{limits.MAX_TEXT_BYTES} bytes, or {limits.TEXT_BYTES_PER_TOKEN} per token of the context if more"
    yield "a text that becomes tokens", text, tokens, "400"
    yield "a prompt and its answer", "the context", tokens, "400 `context_length_exceeded`"
    yield "`n`", str(limits.MAX_CHOICES), "", "400"
    yield "prompts times `n`", str(limits.MAX_SEQUENCES), "", "400"
    yield "tokens of prompts times `n`", str(limits.MAX_PROMPT_TOKENS), "", "400"
    waiting = "`--max-num-queued-reqs`, `--max-num-seqs`"
    yield "sequences that run or wait, of all requests", "as the flags say", waiting, "429"
    yield "`logprobs`, `top_logprobs`, `prompt_logprobs`", "20", "`--max-logprobs`", "400"
    yield "logprobs told of prompts, times `n`", str(limits.MAX_TOLD_LOGPROBS), "", "400"
    yield "one of `bad_words`", f"{limits.MAX_BAD_WORD_TOKENS} tokens", "", "400"
    yield "characters of all pairs of a query and a document", str(limits.MAX_PAIR_CHARS), "", "400"
    yield "stored responses", f"{MAX_STORED}, {MAX_STORED_BYTES} bytes", "", "the oldest go"


def _fields() -> Iterator[tuple[str, ...]]:
    bodies: dict[Cap, list[str]] = {}
    for model in body_models():
        for cap in model.all_caps():
            bodies.setdefault(cap, []).append(f"`{model.__name__}`")
    for cap, names in sorted(bodies.items(), key=lambda item: item[0].path):
        yield (
            f"`{cap.path}`",
            f"{cap.most} {cap.measure.value}{' in all' if cap.total else ''}",
            ", ".join(names),
        )


def body_models() -> list[type[Strict]]:
    """Of all routes, each once."""
    bodies = dict.fromkeys(body for operation in OPERATIONS.values() for body in operation.bodies)
    return [body for body in bodies if issubclass(body, Strict)]


def _door_constants() -> Iterator[tuple[str, ...]]:
    for what, name, unit, result in _DOOR_CONSTANTS:
        module, _, constant = name.rpartition(".")
        yield what, f"{getattr(importlib.import_module(module), constant)} {unit}", result


def _door_settings() -> Iterator[tuple[str, ...]]:
    for name in _DOOR_SETTINGS:
        field = Settings.model_fields[name]
        yield f"`{name.upper()}`", str(field.default), field.description or ""


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
