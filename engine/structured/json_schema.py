"""Which JSON schemas are followed, and how: to the letter, or what can't be enforced is refused by name.

Annotations (`title`, `default`, `contentEncoding`, `x-…`), formats that nobody knows and unknown words assert
nothing and pass.
"""

from __future__ import annotations

from typing import Any

from engine.structured.json_normalise import Follower
from engine.structured.json_parts import Complaints
from engine.structured.json_strings import say_strings
from engine.structured.string_rules import StringRules


def follow_json_schema(
    schema: Any,
    param: str,
    rules: StringRules,
    *,
    is_json: bool = True,
    is_strict: bool = True,
    advice: str = "",
) -> Any:
    """The schema as the compiler follows it.

    Its strings may become stand-ins, whose `rules` are to be inserted in the grammar that the schema becomes.
    `is_json`: whether its strings are written as JSON has them, in quotes and with escapes.
    Raises InvalidRequest for one that can't be followed, and says where and by which keyword, with `advice`.
    If it isn't `is_strict`, what can't be enforced is left out: more is possible then than the schema allows,
    and never less.
    """
    complaints = Complaints(is_strict=is_strict, advice=advice)
    followed = Follower(schema, param, complaints).follow()
    say_strings(followed, rules if is_json else None, complaints)
    return followed
