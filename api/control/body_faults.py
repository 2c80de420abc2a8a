"""Values that are invalid in any control route's body, whatever the field: checked before it is parsed.

Lone surrogates and null characters are invalid in files, processes and logs; NaN and infinities are not JSON;
nothing legitimate is nested deeper or longer than the caps below. Pure.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32  # nested objects and arrays
MAX_NAME_BYTES = 1024  # of any key, and of a top-level string: names, paths, revisions
MAX_FIELD_BYTES = 64 * 1024  # of a top-level object or array, as JSON: params, env, command, devices

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1  # that engines and stores can represent
_MAX_DIGITS = 20
_SHOWN_CHARACTERS = 100  # of the field quoted in an error
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class BadBody:
    """What is wrong, and the field (its path joined by dots; empty: the whole body)."""

    field: str
    problem: str


def find_fault(body: bytes) -> BadBody | None:
    """The first fault in a body; None if there is none, or if it is not JSON at all."""
    try:
        value = json.loads(body, parse_int=_whole_number)
    except RecursionError:
        return BadBody(_field_too_deep(body), f"is nested more than {MAX_DEPTH} levels deep")
    except ValueError:
        return None  # the parser reports it
    if isinstance(value, dict):
        for name, item in value.items():
            if (fault := _fault_in((name,), item)) is not None:
                return fault
            if problem := _too_long(item):
                return BadBody(_shown((name,)), problem)
        return None
    return _fault_in((), value)


def _whole_number(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS + 1 else math.inf


def _fault_in(path: Path, value: Any) -> BadBody | None:
    """The first fault at or below `path`; iterative, as the nesting may be too deep."""
    waiting = [(path, value)]
    while waiting:
        at, item = waiting.pop()
        if problem := _problem_with(at, item):
            return BadBody(_shown(at), problem)
        if isinstance(item, dict):
            waiting.extend(((*at, name), each) for name, each in item.items())
        elif isinstance(item, list):
            waiting.extend(((*at, place), each) for place, each in enumerate(item))
    return None


def _problem_with(path: Path, value: Any) -> str | None:
    if len(path) > MAX_DEPTH:
        return f"is nested more than {MAX_DEPTH} levels deep"
    if path and isinstance(path[-1], str):
        if problem := _no_text(path[-1]):
            return f"has a key that {problem}"
        if len(path[-1].encode()) > MAX_NAME_BYTES:
            return f"is a key of more than {MAX_NAME_BYTES} bytes"
    if isinstance(value, str) and (problem := _no_text(value)):
        return problem
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a number, or too large"
    if isinstance(value, int) and not _MIN_INT <= value <= _MAX_INT:
        return "is an integer of more than 64 bits"
    return None


def _no_text(text: str) -> str | None:
    if "\0" in text:
        return "contains a null character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"contains a lone surrogate (\\u{ord(text[error.start]):04x})"
    return None


def _too_long(value: Any) -> str | None:
    """The problem with a top-level field that is too long."""
    if isinstance(value, str) and len(value.encode()) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    if isinstance(value, dict | list):
        size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        if size > MAX_FIELD_BYTES:
            return f"is longer than {MAX_FIELD_BYTES >> 10} KiB as JSON"
    return None


def _shown(path: Path) -> str:
    text = ".".join(map(str, path)).encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _field_too_deep(body: bytes) -> str:
    """The top-level field whose value is nested too deep to be parsed."""
    depth, last, field = 0, b"", ""
    for token in _TOKEN.finditer(body):
        text = token[0]
        if text in (b"{", b"["):
            depth += 1
            if depth > MAX_DEPTH:
                return field
            if depth == 2 and last:
                field = last[1:-1].decode("utf-8", "replace")[:_SHOWN_CHARACTERS]
        elif text in (b"}", b"]"):
            depth -= 1
        elif depth == 1:
            last = text
    return field
