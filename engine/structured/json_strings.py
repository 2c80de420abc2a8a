"""The strings of a JSON schema, said as patterns that the compiler follows to the letter.

Its own way with lengths lets control characters through, its formats a 30th of February and addresses such as
001.02.3.4, and its patterns characters that a JSON string must escape. Found out with xgrammar 0.2.8.
"""

from __future__ import annotations

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
    search,
    whole,
    written,
)
from engine.structured.regex_parser import parse

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


def rewrite_strings(schema: dict[str, Any]) -> None:
    """In place, what this one schema (not those in it) says of strings. Raises UnsupportedPattern."""
    if "pattern" in schema:
        schema["pattern"] = json_pattern(schema["pattern"])
    elif schema.get("format") in _FORMATS:
        schema["pattern"] = _in_json(whole(parse(_FORMATS[schema.pop("format")])))
    elif "minLength" in schema or "maxLength" in schema:
        least, most = int(schema.pop("minLength", 0)), schema.pop("maxLength", None)
        text = Repeat(Chars(ANY_CHARACTER), least, None if most is None else int(most))
        schema["pattern"] = _in_json(text)
    if "patternProperties" in schema:
        schema["patternProperties"] = {
            json_pattern(pattern): part for pattern, part in schema["patternProperties"].items()
        }


def json_pattern(pattern: str) -> str:
    """Of the JSON strings in whose text `pattern` matches. Raises UnsupportedPattern."""
    return _in_json(search(parse(pattern)))


def plain_pattern(pattern: str) -> str:
    """Of the texts that `pattern` matches from end to end, outside of JSON. Raises UnsupportedPattern."""
    left = confined(whole(parse(pattern)), ANY_CHARACTER)
    if left is None:
        raise UnsupportedPattern("it matches nothing")
    check_counts(left)
    return written(left)


def _in_json(text: Node) -> str:
    left = in_json(text)
    if left is None:
        raise UnsupportedPattern("it matches nothing, or only control characters that are not supported")
    check_counts(left)
    return f"^{_AS_IT_STANDS}({written(left)})$"
