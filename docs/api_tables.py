"""Writes docs/api.md: `python -m docs.api_tables`. Routes and fields come from the code that checks requests,
what differs from vLLM from the conformance suite that shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance.differences import VLLM
from engine.server.app.openapi import ServerKind, build_document, describe_type
from engine.server.app.openapi_operations import GENERATING, NO_OP_FIELDS, OPERATIONS, POOLING, Operation
from engine.server.app.unsupported_routes import UNSUPPORTED
from engine.server.generation.response_store import MAX_STORED, MAX_STORED_BYTES
from engine.server.http.errors import status_table
from engine.server.protocol.field_rules import ALTERNATIVES, FieldRules

PAGE = Path(__file__).with_name("api.md")
_SCHEMAS = "#/components/schemas/"

_INTRODUCTION = """\
# The engine's API

<!-- Written by `make docs`; don't edit. -->

One model behind OpenAI's API, with vLLM's additions. A field that would change the answer works, or is
refused with an error that names it. A field that can't change it (a hint, a billing or cache mark, a display
wish) is accepted. A field that this server doesn't know, and a tool that it can't run, is ignored and named
in the answer's `Warning` header, and once in the log: `299 berth "ignored: num_ctx (unknown field)"`. With
`--unknown-fields refuse`, unknown fields are errors.

The same as a document: `GET /openapi.json`; as a page: `GET /docs`.

**Keys.** With `--api-key KEY …` (or `VLLM_API_KEY`), every route but `/health`, `/ping` and `/version` wants
one of the keys, as `Authorization: Bearer KEY` or as `x-api-key: KEY`. What a key has made is that key's:
another one's stored responses are unknown to it, its prompts find no cached prefix of another's, and it ends
no request but its own. Behind Berth, the keys are Berth's.

**Request ids.** `X-Request-Id` is taken or made, and returned. The id of an answer holds it, or the body's
`request_id`; either names the request for `/inference/v1/abort_requests`. A response's id is random instead,
and names it there as well. What is aborted ends with `finish_reason: "abort"` and the text there is; a
response is `incomplete`, or `cancelled` if it was made in the background.

**Stored responses** lie in memory: {max_stored} and {max_mib} MiB of them. Where that is full, the key that
holds the most gives way by the one it used longest ago, so a key that holds no more than an equal share loses
none to others.

**The context.** A prompt that leaves no room for a token is refused with the code `context_length_exceeded`,
by Anthropic's routes as `prompt is too long: X tokens > Y maximum`. The limit of a chat's answer
(`max_tokens`, `max_completion_tokens`, `max_output_tokens`) is a cap and may be more than the context: what
fits is what you get. So is that of a completion, but one above the whole context is 400, as vLLM has it.
`/tokenize` and `count_tokens` count any length.

**The log** has a line for each request – status, id, tokens, times, why it ended, nothing of its text – and,
every ten seconds in which there is work, one of throughput. `--disable-log-requests` and
`--disable-log-stats` take them away.

**From Python.** `from engine import run_server; run_server("PATH", port=8000, max_model_len=4096)` serves as
`python -m engine PATH --port 8000 --max-model-len 4096` does, until SIGTERM or SIGINT.

**Stopping.** After SIGTERM, new requests get 503 with `Retry-After`; those that run may end within
`--shutdown-timeout` seconds, then they get an error (in a stream: an event, and a connection that breaks).
"""

_ERRORS = """\
## Errors

OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`; `param` is the field as the client wrote
it, such as `messages[1].content`. 429 and 503 carry `Retry-After`.
"""

_ABSENT = """\
## Paths of vLLM's that are not here

They answer 501 and say why.
"""

_DIFFERENCES = """\
## Where it differs from vLLM

Each line is shown by cases of the conformance suite (`make conformance`), which runs against vLLM 0.32 as
well.
"""


def _introduction() -> str:
    return _INTRODUCTION.format(max_stored=MAX_STORED, max_mib=MAX_STORED_BYTES // 2**20)


def render() -> str:
    schemas = build_document(ServerKind.ANY)["components"]["schemas"]
    only_pooling = {key: one for key, one in POOLING.items() if key not in GENERATING}
    parts = [
        _introduction(),
        _ERRORS,
        table(("status", "code"), ((str(status.value), f"`{code}`") for code, status in status_table())),
        "## Routes\n",
        table(("route", "", "body"), _routes(GENERATING)),
        "With `--runner pooling`, instead of those that generate, and of `/reset_prefix_cache`:\n",
        table(("route", "", "body"), _routes(only_pooling)),
        *_bodies(schemas),
        *_objects(schemas),
        "## Paths of vLLM's that are not here\n",
        "They answer 501 and say why.\n",
        table(
            ("path", "why"),
            ((f"`{method} {path}`", reason) for (method, path), reason in UNSUPPORTED.items()),
        ),
        _DIFFERENCES,
        table(("here", "vLLM", "why", "cases"), _differences()),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _routes(operations: Mapping[tuple[str, str], Operation]) -> Iterator[tuple[str, ...]]:
    for (method, path), operation in operations.items():
        summary = operation.summary + (" With `--enable-sleep-mode` only." if operation.sleep_mode else "")
        bodies = " or ".join(_link(body.__name__) for body in operation.bodies)
        query = ", ".join(f"`?{name}=`" for name in operation.query)
        yield f"`{method} {path}`", summary, bodies or query


def _bodies(schemas: Mapping[str, Any]) -> Iterator[str]:
    shown = set()
    for operation in OPERATIONS.values():
        for body in operation.bodies:
            if body.__name__ in shown:
                continue
            shown.add(body.__name__)
            yield f"## {body.__name__}\n"
            yield f"Of {_routes_of(body.__name__)}.\n"
            yield table(("field", "type", "default", ""), _fields(schemas[body.__name__]))
            yield from _rules(operation.rules)


def _routes_of(body: str) -> str:
    return ", ".join(
        f"`{path}`"
        for (_, path), operation in OPERATIONS.items()
        if body in [one.__name__ for one in operation.bodies]
    )


def _objects(schemas: Mapping[str, Any]) -> Iterator[str]:
    """What fields refer to."""
    bodies = {body.__name__ for operation in OPERATIONS.values() for body in operation.bodies}
    yield "## Objects in them\n"
    for name, schema in schemas.items():
        if name not in bodies and name not in ("Error", "AnthropicError") and schema.get("properties"):
            yield f"### {name}\n"
            yield table(("field", "type", "default", ""), _fields(schema))


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        default = "required" if name in required else _value(field.get("default"))
        text = field.get("description", "")
        if name in NO_OP_FIELDS:
            text = f"*Asks for nothing.* {text}"
        yield f"`{name}`", _link_types(describe_type(field)), default, text.strip()


def _rules(rules: FieldRules) -> Iterator[str]:
    if rules.refused:
        yield "Refused by name, but for the values that ask for nothing (null never does):\n"
        yield table(("field", "taken", "instead"), _refused(rules))
    if rules.accepted:
        names = ", ".join(f"`{name}`" for name in sorted(rules.accepted))
        yield f"Accepted without effect: {names}.\n"
    if rules.ignored:
        reasons = "; ".join(f"`{name}`: {reason}" for name, reason in sorted(rules.ignored.items()))
        yield f"Ignored with a warning: {reasons}.\n"


def _refused(rules: FieldRules) -> Iterator[tuple[str, ...]]:
    for name, neutral in sorted(rules.refused.items()):
        yield f"`{name}`", ", ".join(_value(value) for value in neutral), ALTERNATIVES.get(name, "")


def _differences() -> Iterator[tuple[str, ...]]:
    for difference in VLLM:
        cases = "<br>".join(f"`{pattern}`" for pattern in difference.cases)
        yield difference.ours, difference.theirs, difference.reason, cases


def _absent() -> Iterator[tuple[str, ...]]:
    for (method, path), reason in UNSUPPORTED.items():
        yield f"`{method} {path}`", reason


def _value(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _link_types(text: str) -> str:
    """Names of objects in a type become links."""
    known = build_document(ServerKind.ANY)["components"]["schemas"]
    words = [_link(word) if known.get(word, {}).get("properties") else word for word in text.split(" ")]
    return " ".join(words)


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
