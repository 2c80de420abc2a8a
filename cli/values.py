"""Values typed on a command line or into a chat."""

from __future__ import annotations

import json
from typing import Any

from cli.errors import wrong_use


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
    """`0.2`, `true`, `[1]` as what they are; anything else is text."""
    try:
        return json.loads(value)
    except ValueError:
        return value
