"""What no body of a control route may hold, whatever its fields mean: looked at before anything reads it.

Half characters and nulls are no text to a file, a process or a log; numbers that are none to JSON come back
as something else; what is nested deeper or longer than the caps below is nobody's configuration. Pure.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32  # objects and lists within one another
MAX_NAME_BYTES = 1024  # of a key anywhere, and of a field that is text: names, paths, revisions
MAX_FIELD_BYTES = 64 * 1024  # of a field that is an object or a list, as JSON: params, env, command, devices

_LEAST, _MOST = -(2**63), 2**64 - 1  # whole numbers that engines and stores can hold
_MAX_DIGITS = 20
_SHOWN_CHARACTERS = 100  # of the place in an error
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class BadBody:
    """What is wrong, and with which field (from the top, joined by dots; empty: with all of it)."""

    field: str
    problem: str


def find_fault(body: bytes) -> BadBody | None:
    """The first fault in a body; None where there is none, and for what is no JSON at all."""
    try:
        value = json.loads(body, parse_int=_whole_number)
    except RecursionError:
        return BadBody(_field_too_deep(body), f"is nested more than {MAX_DEPTH} deep")
    except ValueError:
        return None  # whoever reads it says so
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
    """Of what is at `path`, and below; without recursion, as that is one of the faults."""
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
        return f"is nested more than {MAX_DEPTH} deep"
    if path and isinstance(path[-1], str):
        if problem := _no_text(path[-1]):
            return f"has a name that {problem}"
        if len(path[-1].encode()) > MAX_NAME_BYTES:
            return f"is a name of more than {MAX_NAME_BYTES} bytes"
    if isinstance(value, str) and (problem := _no_text(value)):
        return problem
    if isinstance(value, float) and not math.isfinite(value):
        return "is no number, or one that is too large"
    if isinstance(value, int) and not _LEAST <= value <= _MOST:
        return "is a whole number of more than 64 bits"
    return None


def _no_text(text: str) -> str | None:
    if "\0" in text:
        return "holds a null character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a character (\\u{ord(text[error.start]):04x})"
    return None


def _too_long(value: Any) -> str | None:
    """Of a whole field, which has no other fault."""
    if isinstance(value, str) and len(value.encode()) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    if isinstance(value, dict | list):
        size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        if size > MAX_FIELD_BYTES:
            return f"is longer than {MAX_FIELD_BYTES >> 10} KiB in all"
    return None


def _shown(path: Path) -> str:
    text = ".".join(map(str, path)).encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _field_too_deep(body: bytes) -> str:
    """The field of the top whose value is nested too deep to be read."""
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
