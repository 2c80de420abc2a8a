"""A process for one long JSON body: reads it, or writes it anew. `python -m api.gateway.json_worker`.

Parsers and writers of JSON hold the interpreter until they are done, and with it everybody else's streams.
Standard input is a line of JSON that says what to do, then the body; the answer is a line, then what it says.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

from api.http.named_model import MAX_NAME_BYTES, InvalidBody, UnclearModel, model_in_object, read_object

_MAX_FIELDS = 4096  # of a body's own; engines know some hundred
_OUTLINE_CHARS = 2**18
_LEAST_SHARES = 16  # of the outline: few fields don't make it longer than it is of use
_TEXT_CHARS = 4096  # of what is told of a body: whoever asks wants to know how it begins
_ENTRIES = 4096
_FIELDS = 64
_DEPTH = 6
_LEAST_CHARS = 8  # a value takes so many, with what stands around it
_FAILURES = {"InvalidBody": InvalidBody, "UnclearModel": UnclearModel}


def main() -> None:
    answer, body = _serve(sys.stdin.buffer)
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n" + body)
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
    """A body's own fields, with the beginnings of what is long. Raises InvalidBody where they are too many.

    Names longer than any that is known are left out.
    """
    if len(fields) > _MAX_FIELDS:
        raise InvalidBody(f"the body has {len(fields)} fields; at most {_MAX_FIELDS} are taken")
    share = _OUTLINE_CHARS // max(_LEAST_SHARES, len(fields))
    return {
        name: _Outline(share).of(value, _DEPTH)
        for name, value in fields.items()
        if len(name) <= MAX_NAME_BYTES
    }


class _Outline:
    """Of one value, in so many characters of JSON, or a few more."""

    def __init__(self, chars: int) -> None:
        self._left = chars

    def of(self, value: Any, depth: int) -> Any:
        self._left -= _LEAST_CHARS
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            first = value[: _ENTRIES if value and isinstance(value[0], int) else 2] if depth else []
            return [self.of(one, depth - 1) for one in first if self._left > 0]
        if isinstance(value, dict):
            first_fields = list(value.items())[:_FIELDS] if depth else []
            return {self._text(name): self.of(one, depth - 1) for name, one in first_fields if self._left > 0}
        return value

    def _text(self, text: str) -> str:
        text = text[: max(0, min(self._left, _TEXT_CHARS))]
        self._left -= len(text)
        return text


if __name__ == "__main__":
    main()
