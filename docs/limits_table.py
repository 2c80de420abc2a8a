"""Writes docs/limits.md: `python -m docs.limits_table`. Limits come from the code that enforces them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.settings import Settings
from docs.api_tables import table
from engine.core.logits_processors import MANY_LISTED
from engine.core.prompt_budget import MAX_TOLD_IN_STEP
from engine.execution.build import CPU_PREFILL_BESIDE_DECODES
from engine.server.app.openapi_operations import OPERATIONS
from engine.server.generation.response_store import MAX_STORED, MAX_STORED_BYTES
from engine.server.http.large_work import LARGE_BYTES
from engine.server.protocol import limits
from engine.server.protocol.generation_body import Strict
from engine.server.protocol.size_limit import Measure, SizeLimit
from engine.text.tokenizer import ENCODED_TOGETHER

PAGE = Path(__file__).with_name("limits.md")

_INTRODUCTION = """\
# What one request may carry

<!-- Written by `make docs`; don't edit. -->

Every list, string, count and nesting level in a request has a limit. A request above a limit is refused
before it is processed, with an error that names the field, the limit and the size sent:
`messages: at most 10000 entries, not 1000000.` Limits are far above what clients send, so few have a
setting; those that depend on the model follow its flags. Fields that are not read, and the values of objects
with free field names, are limited with the body as a whole.

## Any body of the engine's
"""

_WORK = f"""\
## Work that one request may cause

No request may take more than a stated share of a step or of the interpreter, whatever it asks for:

- **A step.** It runs at most `--max-num-batched-tokens` tokens and `--max-num-seqs` sequences, of all
  requests together. Sequences that go on come first, with a token each; prompts get what is left, on a CPU
  {{beside}} tokens while others go on. One request, whatever its prompts, `n` or beams, has at most three
  quarters of the sequences while another is there, and of the prompts' tokens while another's prompt is
  ready; what it took before, it gives back when another waits for it.
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
- **Answers.** Logprobs of a whole answer are kept as numbers, and written, as steps full of them are, in a
  thread that rests as long as it has worked.
- **Stop strings.** A character costs the same however long they are.
"""

_DOOR = """\
## Berth's own door

What passes through Berth has to pass its engine's limits as well.
"""

_REFUSED = "not read"

# What, constant, unit, what a client gets.
_DOOR_CONSTANTS = (
    ("a JSON body", "api.gateway.request_reader.MAX_JSON_BYTES", "bytes", "413"),
    ("arrays and objects in it", "api.http.json_structure.MAX_CONTAINERS", "", "400"),
    ("commas between its values", "api.http.json_structure.MAX_COMMAS", "", "400"),
    ("nesting of it", "engine.server.protocol.limits.MAX_JSON_DEPTH", "levels", "400"),
    ("`model`, in JSON, forms and queries", "api.http.named_model.MAX_NAME_BYTES", "bytes", "400"),
    ("body of another protocol that is translated", "api.protocols.app.MAX_BODY_BYTES", "bytes", "413"),
    ("commas between its values", "api.protocols.app.MAX_COMMAS", "", "422"),
    (
        "body that the answer cache looks at",
        "api.gateway.response_cache.MAX_BODY_BYTES",
        "bytes",
        "passes uncached",
    ),
    ("multipart: parts", "api.gateway.form_scan._MAX_PARTS", "", "400"),
    ("multipart: a part's headers", "api.gateway.form_scan._MAX_HEAD", "bytes", "400"),
    ("multipart: a model's name", "api.gateway.form_scan._MAX_VALUE", "bytes", "400"),
    ("multipart: the boundary", "api.gateway.form_scan._MAX_BOUNDARY", "bytes", "400"),
    ("a WebSocket's message", "api.proxy.websocket._MAX_MESSAGE_BYTES", "bytes", "closed"),
    ("an engine's response head", "api.proxy.upstream.MAX_HEAD_BYTES", "bytes", "502"),
)
_CONTROL = """\
## Control routes and files

Bodies of Berth's own routes (instances, models, keys), models.yaml, keys and settings.
"""
_CONTROL_CONSTANTS = (
    ("a body, decoded where it is compressed", "api.control.body_limit.MAX_BYTES", "bytes", "413"),
    ("nesting of a body", "api.control.body_faults.MAX_DEPTH", "levels", "422"),
    (
        "a name, and a field that is text: names, paths, revisions",
        "api.control.body_faults.MAX_NAME_BYTES",
        "bytes",
        "422",
    ),
    (
        "a field that is a list or an object: params, env, command",
        "api.control.body_faults.MAX_FIELD_BYTES",
        "bytes",
        "422",
    ),
    (
        "a file that people write: models.yaml, keys, `.env`",
        "configs.bounded_file.MAX_BYTES",
        "bytes",
        _REFUSED,
    ),
    ("nesting of models.yaml", "configs.yaml_bounds.MAX_DEPTH", "levels", _REFUSED),
    (
        "entries of one list or mapping in it, so models too",
        "configs.yaml_bounds.MAX_ENTRIES",
        "entries",
        _REFUSED,
    ),
    ("values in it, aliases followed", "configs.yaml_bounds.MAX_VALUES", "values", _REFUSED),
)
_SPENT = "s of a processor"
_STRUCTURED_CONSTANTS = (
    (
        "a schema, an expression, a grammar, a tag",
        "engine.structured.structurer.MAX_SOURCE_CHARS",
        "characters",
        "400",
    ),
    ("what the compiler makes of it", "engine.structured.grammar_compile.MAX_COMPILED_BYTES", "bytes", "400"),
    (
        "memory that compiling or following it takes, in its process",
        "engine.structured.wire.MAX_EXTRA_BYTES",
        "bytes",
        "400",
    ),
    ("time to compile it", "engine.structured.wire.COMPILE_S", _SPENT, "400"),
    (
        "time for what may come next, after one token",
        "engine.structured.wire.MASK_S",
        _SPENT,
        "400",
    ),
    (
        "the same for an answer's steps that take long",
        "engine.structured.wire.SLOW_MASKS_S",
        _SPENT,
        "400",
    ),
    ("compilations that take long, at a time", "engine.structured.structurer._MAX_SLOW", "", "429"),
    ("nesting of a schema", "engine.structured.json_parts.MAX_DEPTH", "levels", "400"),
    ("parts of a schema, combinations included", "engine.structured.json_open._MAX_PARTS", "parts", "400"),
    ("counts in a schema: `minItems`, `maxLength` …", "engine.structured.json_parts.MAX_COUNT", "", "400"),
    ("a regular expression", "engine.structured.regex_parser.MAX_CHARS", "characters", "400"),
    ("nesting of a regular expression", "engine.structured.regex_parser._MAX_DEPTH", "levels", "400"),
    ("counts within counts of one, multiplied", "engine.structured.regex.MAX_NESTED_COUNT", "", "400"),
    ("nesting of a structural tag", "engine.structured.structural_tag.MAX_DEPTH", "levels", "400"),
    ("new ones that wait to be compiled", "engine.structured.structurer._MAX_WAITING", "", "429"),
)
_FIELDS = """\
`[]` stands for each entry of a list, "in all" for the sum over them; bytes of text are summed over a prompt.
"""

_DOOR_SETTINGS = ("max_body_mb", "max_connections", "max_queue", "max_in_flight", "max_wait")


def render() -> str:
    heads = ("what", "at most", "setting", "above it")
    work = _WORK.format(
        large=LARGE_BYTES >> 10,
        together=ENCODED_TOGETHER >> 10,
        many=MANY_LISTED,
        beside=CPU_PREFILL_BESIDE_DECODES,
    )
    parts = [
        _INTRODUCTION,
        table(heads, _general()),
        "## By field\n",
        _FIELDS,
        table(("field", "at most", "setting", "above it", "of"), _fields()),
        "## Whole numbers\n",
        table(("field", "at most", "setting", "above it"), _numbers()),
        "## Schemas, expressions and grammars\n",
        table(("what", "at most", "above it"), _constants(_STRUCTURED_CONSTANTS)),
        work,
        _DOOR,
        table(("what", "at most", "above it"), _constants(_DOOR_CONSTANTS)),
        _CONTROL,
        table(("what", "at most", "above it"), _constants(_CONTROL_CONSTANTS)),
        "## Settings\n",
        table(("setting", "default", ""), _door_settings()),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _general() -> Iterator[tuple[str, ...]]:
    tokens = "`--max-model-len`"
    yield "the body, decoded where it is compressed", f"{limits.MAX_BODY_BYTES} bytes", "", "413"
    yield "lists and objects in its JSON", str(limits.MAX_JSON_CONTAINERS), "", "400"
    yield "fields of objects in its JSON", str(limits.MAX_JSON_MEMBERS), "", "400"
    yield "values in its JSON", str(limits.MAX_JSON_VALUES), "", "400"
    yield "escapes in its strings (`\\n`, `\\u00e9`)", str(limits.MAX_JSON_ESCAPES), "", "400"
    yield "nesting", f"{limits.MAX_JSON_DEPTH} levels", "", "400"
    yield "fields of the body", str(limits.MAX_FIELDS), "", "400"
    text = f"{limits.MAX_TEXT_BYTES} bytes, or {limits.TEXT_BYTES_PER_TOKEN} per token of the context if more"
    yield "a text that becomes tokens", text, tokens, "400"
    yield "a prompt and its answer", "the context", tokens, "400 `context_length_exceeded`"
    yield "prompts times `n`", str(limits.MAX_SEQUENCES), "", "400"
    yield "tokens of prompts times `n`", str(limits.MAX_PROMPT_TOKENS), "", "400"
    waiting = "`--max-num-queued-reqs`, `--max-num-seqs`"
    yield "sequences that run or wait, of all requests", "as the flags say", waiting, "429"
    yield "logprobs told of prompts, times `n`", str(limits.MAX_PROMPT_LOGPROBS), "", "400"
    yield (
        "logprobs told of all choices of an answer",
        str(limits.MAX_ANSWER_LOGPROBS),
        "`stream`: none",
        "400",
    )
    yield "tokens of all beams", str(limits.MAX_BEAM_TOKENS), "", "400"
    yield "one of `bad_words`", f"{limits.MAX_BAD_WORD_TOKENS} tokens", "", "400"
    yield "characters of all pairs of a query and a document", str(limits.MAX_PAIR_CHARS), "", "400"
    yield "stored responses", f"{MAX_STORED}, {MAX_STORED_BYTES} bytes", "", "the oldest go"


def _fields() -> Iterator[tuple[str, ...]]:
    bodies: dict[SizeLimit, list[str]] = {}
    for model in body_models():
        for limit in model.all_size_limits():
            bodies.setdefault(limit, []).append(f"`{model.__name__}`")
    for limit, names in sorted(bodies.items(), key=lambda item: item[0].path):
        is_text = limit.measure is Measure.TEXT
        yield (
            f"`{limit.path}`",
            f"{limit.most} {limit.measure.value}{' in all' if limit.total else ''}",
            f"`--max-model-len`: {limits.TEXT_BYTES_PER_TOKEN} per token of the context" if is_text else "",
            "400",
            ", ".join(names),
        )


def _numbers() -> Iterator[tuple[str, ...]]:
    yield "`n`", str(limits.MAX_CHOICES), "", "400"
    yield "`n` with `use_beam_search`", str(limits.MAX_BEAMS), "", "400"
    for name, bound in limits.BOUNDED_BY.items():
        flag = "`--max-logprobs`, 20" if "max-logprobs" in bound else ""
        yield f"`{name}`", flag or bound, "`--max-logprobs`" if flag else "", "400 where it can be passed"


def body_models() -> list[type[Strict]]:
    """Of all routes, each once."""
    bodies = dict.fromkeys(body for operation in OPERATIONS.values() for body in operation.bodies)
    return [body for body in bodies if issubclass(body, Strict)]


def _constants(rows: Iterable[tuple[str, str, str, str]]) -> Iterator[tuple[str, ...]]:
    for what, name, unit, result in rows:
        module, _, constant = name.rpartition(".")
        yield what, f"{getattr(importlib.import_module(module), constant)} {unit}".strip(), result


def _door_settings() -> Iterator[tuple[str, ...]]:
    for name in _DOOR_SETTINGS:
        field = Settings.model_fields[name]
        yield f"`{name.upper()}`", str(field.default), field.description or ""


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
