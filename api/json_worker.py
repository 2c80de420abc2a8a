"""A process of its own for one long JSON body: reads it, or writes it anew. `python -m api.json_worker`.

Parsers and writers of JSON hold the interpreter until they are done, and with it everybody else's streams.
Standard input is a line of JSON that says what to do, then the body; the answer is a line, then what it says.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

from api.named_model import InvalidBody, UnclearModel, model_in_object, read_object

_TEXT_CHARS = 4096  # of what is told of a body: whoever asks wants to know how it begins
_ENTRIES = 4096
_FIELDS = 64
_DEPTH = 6
_FAILURES = {"InvalidBody": InvalidBody, "UnclearModel": UnclearModel}


def main() -> None:
    answer, body = _serve(sys.stdin.buffer)
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + body)
    sys.stdout.buffer.flush()


def _serve(given: BinaryIO) -> tuple[dict[str, Any], bytes]:
    order = json.loads(given.readline())
    body = given.read()
    try:
        fields = read_object(body)
        if order["do"] == "read":
            return {"name": model_in_object(body, fields), "outline": outline(fields)}, b""
    except (InvalidBody, UnclearModel) as error:
        return {"failure": type(error).__name__, "message": str(error)}, b""
    strip, changes = set(order["strip"]), order["changes"]
    kept = {name: value for name, value in fields.items() if name not in strip}
    return {}, json.dumps(kept | changes, ensure_ascii=False).encode()


def raise_failure(answer: dict[str, Any]) -> None:
    """Raise what the other process has raised, if anything."""
    if (name := answer.get("failure")) is not None:
        raise _FAILURES[name](answer["message"])


def outline(fields: dict[str, Any]) -> dict[str, Any]:
    """A body's own fields, all of them, with the beginnings of what is long."""
    return {name: _beginning(value, _DEPTH) for name, value in fields.items()}


def _beginning(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value[:_TEXT_CHARS]
    if isinstance(value, list):
        first = value[: _ENTRIES if value and isinstance(value[0], int) else 2]
        return [_beginning(one, depth - 1) for one in first] if depth else []
    if isinstance(value, dict):
        first_fields = list(value.items())[:_FIELDS]
        return {name[:_TEXT_CHARS]: _beginning(one, depth - 1) for name, one in first_fields} if depth else {}
    return value


if __name__ == "__main__":
    main()
