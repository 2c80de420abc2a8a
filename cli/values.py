"""Values typed on a command line or into a chat."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from cli.errors import wrong_use

_PYTHON_BOOLEANS = {"True": True, "False": False}
_EXPONENT = re.compile(r"-?\d+(\.\d+)?[eE][+-]?\d+")


def key_values(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE as an object; a value is JSON if it reads as such, else text. Raises CliError."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise wrong_use(f"{pair!r} is not KEY=VALUE", "for instance temperature=0.2")
        found[key] = json_or_text(value)
    return found


def json_or_text(value: str) -> Any:
    """`0.2`, `true`, `[1]` as what they are; anything else is text.

    `1e3` is a whole number, for flags that take nothing else; True and False are how Python writes booleans;
    NaN and Infinity are text, as JSON has no such numbers.
    """
    if value in _PYTHON_BOOLEANS:
        return _PYTHON_BOOLEANS[value]
    try:
        read = json.loads(value, parse_constant=_no_json, parse_float=_number)
        json.dumps(read, allow_nan=False)  # 1e999 reads as infinite
    except (ValueError, OverflowError, RecursionError):
        return value
    return read


def _number(text: str) -> float | int:
    number = float(text)
    return int(number) if _EXPONENT.fullmatch(text) and number.is_integer() else number


def _no_json(name: str) -> NoReturn:
    raise ValueError(name)
