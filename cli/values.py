"""Values from a command line or a chat."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from cli.errors import wrong_use

_PYTHON_BOOLEANS = {"True": True, "False": False}
_EXPONENT = re.compile(r"-?\d+(\.\d+)?[eE][+-]?\d+")


def key_values(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE as an object; a value is JSON if it can be parsed as such, else text. Raises CliError."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise wrong_use(f"{pair!r} is not KEY=VALUE", "e.g. temperature=0.2")
        found[key] = json_or_text(value)
    return found


def json_or_text(value: str) -> Any:
    """`0.2`, `true`, `[1]` as JSON; anything else as text.

    `1e3` becomes an integer, for flags that accept nothing else; True and False are Python's booleans; NaN
    and Infinity are text, as JSON has no such numbers.
    """
    if value in _PYTHON_BOOLEANS:
        return _PYTHON_BOOLEANS[value]
    try:
        parsed = json.loads(value, parse_constant=_no_json, parse_float=_number)
        json.dumps(parsed, allow_nan=False)  # 1e999 is parsed as infinite
    except (ValueError, OverflowError, RecursionError):
        return value
    return parsed


def _number(text: str) -> float | int:
    number = float(text)
    return int(number) if _EXPONENT.fullmatch(text) and number.is_integer() else number


def _no_json(name: str) -> NoReturn:
    raise ValueError(name)
