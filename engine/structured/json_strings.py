"""The strings of a JSON schema, said as patterns that the compiler follows to the letter.

Its own way with lengths lets control characters through, its formats a 30th of February and addresses such as
001.02.3.4, and its patterns characters that a JSON string must escape. Found out with xgrammar 0.2.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.structured.regex import (
    ANY_CHARACTER,
    Chars,
    Node,
    Repeat,
    UnsupportedPattern,
    check_counts,
    confined,
    in_json,
    in_json_roughly,
    search,
    whole,
    written,
)
from engine.structured.regex_parser import parse
from engine.structured.string_rules import StringRules

_DATE = (
    r"((\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29|"
    r"\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])))"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+\-]([01]\d|2[0-3]):[0-5]\d)"
_OCTET = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = r"[A-Za-z0-9](-?[A-Za-z0-9]){0,22}"
_HOSTNAME = rf"{_LABEL}(\.{_LABEL}){{0,4}}"  # at most 229 characters, of 253 possible
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]{1,20}"
_POINTER = r"(/([^/~]|~[01])*)*"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"{_ATOM}(\.{_ATOM}){{0,2}}@{_HOSTNAME}",
    "hostname": _HOSTNAME,
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9]\d{{0,8}})(#|{_POINTER})",
}
FORMATS = frozenset(_FORMATS) | {"duration", "ipv6", "uri", "uri-reference", "uri-template", "uuid"}

# Before a pattern, a control character that never comes: with it, the compiler writes the pattern into the
# string as it stands. Its other way leaves escapes out and mixes up alternatives such as a{1,2}|[ab].
_AS_IT_STANDS = "\x01{0,0}"


def rewrite_strings(schema: dict[str, Any], rules: StringRules | None) -> None:
    """In place, what this one schema (not those in it) says of strings. Raises UnsupportedPattern.

    `rules` takes what it can; None where the strings are names, which the compiler wants as patterns.
    """
    text = _text(schema)
    if text is not None:
        for word in ("pattern", "format", "minLength", "maxLength"):
            schema.pop(word, None)
        if rules is None or not _stand_in(schema, text, rules):
            schema["pattern"] = _pattern_in_json(text)
    if "patternProperties" in schema:
        schema["patternProperties"] = {
            _pattern_in_json(search(parse(pattern))): part
            for pattern, part in schema["patternProperties"].items()
        }


def _text(schema: Mapping[str, Any]) -> Node | None:
    """What the strings may be, without quotes and escapes; None where that is left to the compiler."""
    if "pattern" in schema:
        return search(parse(schema["pattern"]))
    if schema.get("format") in _FORMATS:
        return whole(parse(_FORMATS[schema["format"]]))
    if "minLength" in schema or "maxLength" in schema:
        most = schema.get("maxLength")
        return Repeat(
            Chars(ANY_CHARACTER), int(schema.get("minLength", 0)), None if most is None else int(most)
        )
    return None


def _stand_in(schema: dict[str, Any], text: Node, rules: StringRules) -> bool:
    types = schema.get("type")
    others = [one for one in types if one != "string"] if isinstance(types, list) else []
    if types not in ("string", ["string"]) and others != ["null"]:
        return False
    exact = in_json(text)
    constant = None if exact is None else rules.stand_in(exact)
    if constant is None:
        return False
    del schema["type"]
    if others:
        schema["anyOf"] = [{"const": constant}, {"type": "null"}]
    else:
        schema["const"] = constant
    return True


def plain_pattern(pattern: str) -> str:
    """Of the texts that `pattern` matches from end to end, outside of JSON. Raises UnsupportedPattern."""
    left = confined(whole(parse(pattern)), ANY_CHARACTER)
    if left is None:
        raise UnsupportedPattern("it matches nothing")
    check_counts(left)
    return written(left)


def _pattern_in_json(text: Node) -> str:
    left = in_json_roughly(text)
    if left is None:
        raise UnsupportedPattern("it matches nothing, or only control characters that are not supported")
    check_counts(left)
    return f"^{_AS_IT_STANDS}({written(left)})$"
