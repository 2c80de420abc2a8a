"""A process for one long JSON body: parses or rewrites it. Run as `python -m api.gateway.json_worker`.

JSON parsers and encoders hold the interpreter, and so all streams, until they are done. Standard
input is a line of JSON with the order, then the body; standard output is a line of JSON, then any new body.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

from api.http.named_model import MAX_NAME_BYTES, InvalidBody, UnclearModel, model_in_object, read_object

_MAX_FIELDS = 4096  # at the top level; engines know some hundred
_OUTLINE_CHARS = 2**18
_LEAST_SHARES = 16  # of the outline, so that a single field does not get all of it
_TEXT_CHARS = 4096  # of a string in the outline: only its beginning is used
_ENTRIES = 4096
_FIELDS = 64
_DEPTH = 6
_LEAST_CHARS = 8  # cost of any value, including punctuation
_FAILURES = {"InvalidBody": InvalidBody, "UnclearModel": UnclearModel}


def main() -> None:
    answer, body = _serve(sys.stdin.buffer)
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n" + body)
    sys.stdout.buffer.flush()


def _serve(stdin: BinaryIO) -> tuple[dict[str, Any], bytes]:
    order = json.loads(stdin.readline())
    body = stdin.read()
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
    """Raise the worker's exception, if there is one."""
    if (name := answer.get("failure")) is not None:
        raise _FAILURES[name](answer["message"])


def outline(fields: dict[str, Any]) -> dict[str, Any]:
    """A body's top-level fields, with long values truncated. Raises InvalidBody if there are too many.

    Fields with very long names are left out.
    """
    if len(fields) > _MAX_FIELDS:
        raise InvalidBody(f"the body has {len(fields)} fields; at most {_MAX_FIELDS} are allowed")
    share = _OUTLINE_CHARS // max(_LEAST_SHARES, len(fields))
    return {
        name: _Outline(share).of(value, _DEPTH)
        for name, value in fields.items()
        if len(name) <= MAX_NAME_BYTES
    }


class _Outline:
    """Truncates one value to about this many characters of JSON."""

    def __init__(self, chars: int) -> None:
        self._left = chars

    def of(self, value: Any, depth: int) -> Any:
        self._left -= _LEAST_CHARS
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            first = value[: _ENTRIES if value and isinstance(value[0], int) else 2] if depth else []
            return [self.of(item, depth - 1) for item in first if self._left > 0]
        if isinstance(value, dict):
            first_fields = list(value.items())[:_FIELDS] if depth else []
            return {self._text(k): self.of(v, depth - 1) for k, v in first_fields if self._left > 0}
        return value

    def _text(self, text: str) -> str:
        text = text[: max(0, min(self._left, _TEXT_CHARS))]
        self._left -= len(text)
        return text


if __name__ == "__main__":
    main()
