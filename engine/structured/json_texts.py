"""What a JSON schema says of a string, all of it together: formats, patterns and lengths.

Formats that a parser of JSON or an API knows are enforced; all others (`password`, `int64`, `file-path` …)
are annotations, as JSON Schema has it, and constrain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.structured.automaton import State, combined
from engine.structured.json_parts import MAX_COUNT, NOT_PATTERN, NOT_VALUES, Complaints, Part, is_number
from engine.structured.regex import ANY_CHARACTER, Chars, Node, Repeat, Run, UnsupportedPattern, search, whole
from engine.structured.regex_parser import parse

_DATE = (
    r"((\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29|"
    r"\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])))"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+\-]([01]\d|2[0-3]):[0-5]\d)"
_OCTET = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = r"[A-Za-z0-9](-?[A-Za-z0-9]){0,22}"
_HOSTNAME = rf"{_LABEL}(\.{_LABEL}){{0,4}}"  # at most 229 characters, of 253 possible
_SHORT_LABEL = r"[A-Za-z0-9](-?[A-Za-z0-9])*"
_SHORT_HOSTNAME = rf"{_SHORT_LABEL}(\.{_SHORT_LABEL})*"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]{1,20}"
_POINTER = r"(/([^/~]|~[01])*)*"
_HEX = "[0-9A-Fa-f]"
_H16 = rf"{_HEX}{{1,4}}"
_SEGMENT = r"([A-Za-z0-9._~!$&'()*+,;=:@\-]|%[0-9A-Fa-f]{2})"
_TAIL = rf"(/{_SEGMENT}*)*(\?({_SEGMENT}|[/?])*)?(#({_SEGMENT}|[/?])*)?"
# The compiler knows these itself; the expressions here, which say less than all that is possible, are for
# where something else is said of the string besides.
_COMPILERS = {
    "duration": r"P(\d{1,4}W|\d{1,4}D(T\d{1,4}H(\d{1,4}M(\d{1,4}S)?)?)?|T(\d{1,4}H|\d{1,4}M|\d{1,4}S))",
    "ipv6": rf"(({_H16}:){{7}}{_H16}|({_H16}:){{1,3}}(:{_H16}){{1,4}}|::({_H16}(:{_H16}){{0,6}})?)",
    "uri": rf"[A-Za-z][A-Za-z0-9+.\-]{{0,15}}://{_HOSTNAME}(:\d{{1,4}})?{_TAIL}",
    "uri-reference": rf"([A-Za-z][A-Za-z0-9+.\-]{{0,15}}://{_HOSTNAME}(:\d{{1,4}})?)?/{_TAIL}",
    "uri-template": r"([A-Za-z0-9._~/:\-]|\{[A-Za-z0-9_]{1,32}\})*",
    "uuid": rf"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
}
_OURS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"{_ATOM}(\.{_ATOM}){{0,2}}@{_HOSTNAME}",
    "hostname": _HOSTNAME,
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9]\d{{0,8}})(#|{_POINTER})",
}
FORMATS = {**_OURS, **_COMPILERS}
# Without counts, which a length that is asked for does without: no part is too long then.
_SHORT = {
    "email": r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+)*@" + _SHORT_HOSTNAME,
    "hostname": _SHORT_HOSTNAME,
    "uri": rf"https?://{_SHORT_HOSTNAME}(:\d{{1,4}})?{_TAIL}",
}
_SHORT_CHARS = 63
_MAX_STATES = 1024  # of an automaton that a text is compared with


@dataclass(frozen=True, slots=True)
class Text:
    """A string's characters. Where nothing is said of it, all is empty."""

    path: str
    wanted: tuple[Node, ...] = ()  # every one matches it
    unwanted: tuple[Node, ...] = ()  # none does
    least: int = 0
    most: int | None = None
    format: str | None = None  # if nothing else is said, so that the compiler's own will do

    @property
    def known(self) -> tuple[Node, ...]:
        """What matches it, formats of the compiler's own among it."""
        return self.wanted or ((whole(parse(FORMATS[self.format])),) if self.format else ())

    @property
    def length(self) -> Node | None:
        if not self.least and self.most is None:
            return None
        return Repeat(Chars(ANY_CHARACTER), self.least, self.most)


def read_text(parts: Sequence[Part], complaints: Complaints) -> Text | None:
    """None if no string has the lengths that are asked for."""
    wanted: list[Node] = []
    unwanted: list[Node] = []
    formats = dict.fromkeys(name for part in parts if (name := part.schema.get("format")) in FORMATS)
    for part in parts:
        wanted += _pattern(part, "pattern", complaints)
        unwanted += _pattern(part, NOT_PATTERN, complaints)
        values = part.schema.get(NOT_VALUES, ())
        unwanted += [_spelt(value) for value in values if isinstance(value, str)]
    least = max((read_count(part, "minLength", 0, complaints) for part in parts), default=0)
    most = min(
        (read_count(part, "maxLength", MAX_COUNT + 1, complaints) for part in parts), default=MAX_COUNT + 1
    )
    if least > most:
        return None
    is_bare = len(formats) == 1 and not wanted and not unwanted and not least and most > MAX_COUNT
    only = next(iter(formats), None) if is_bare else None
    known = FORMATS | (_SHORT if most <= _SHORT_CHARS else {})
    wanted += [whole(parse(known[name])) for name in formats if only not in _COMPILERS]
    path = next((part.path for part in parts), "")
    bound = None if all("maxLength" not in part.schema for part in parts) else most
    return Text(path, tuple(wanted), tuple(unwanted), least, bound, only)


def matches(text: str, node: Node) -> bool | None:
    """Whether it does, from end to end; None where the expression is too large to say."""
    states = _automaton(node)
    return None if states is None else _accepts(states, text)


def fits_text(value: str, schema: dict[str, Any]) -> bool:
    """Whether a string is what one schema says of strings."""
    try:
        said = read_text([Part.at(schema, "")], Complaints(is_strict=False))
    except UnsupportedPattern:
        return True
    if said is None or not said.least <= len(value) <= (said.most if said.most is not None else len(value)):
        return False
    return all(matches(value, node) is not False for node in said.known) and not any(
        matches(value, node) for node in said.unwanted
    )


def name_matches(pattern: str, name: str) -> bool:
    """Whether the expression is found in it. Raises UnsupportedPattern."""
    return matches(name, search(parse(pattern))) is not False


def _pattern(part: Part, word: str, complaints: Complaints) -> list[Node]:
    pattern = part.schema.get(word)
    if pattern is None:
        return []
    if not isinstance(pattern, str):
        complaints.malformed(part.path, word, "must be a string")
        return []
    try:
        return [search(parse(pattern))]
    except UnsupportedPattern as error:
        named = "not" if word == NOT_PATTERN else word
        complaints.refuse(part.path, named, f"can't be followed: {error}")
        return []


def read_count(part: Part, word: str, default: int, complaints: Complaints) -> int:
    """A whole number of the schema's. Those beyond what the compiler counts to are brought down to that."""
    value = part.schema.get(word)
    if value is None:
        return default
    if not is_number(value) or value != int(value) or value < 0:
        complaints.malformed(part.path, word, f"must be a whole number, not {value!r:.40}")
        return default
    if value > MAX_COUNT and word.startswith("min"):
        complaints.refuse(part.path, word, f"is {value}: up to {MAX_COUNT} are possible")
        return default
    return min(int(value), MAX_COUNT)


def _spelt(text: str) -> Node:
    return Run(tuple(Chars(((ord(character), ord(character)),)) for character in text))


@lru_cache(maxsize=256)
def _automaton(node: Node) -> tuple[State, ...] | None:
    return combined([node], max_states=_MAX_STATES)


def _accepts(states: Sequence[State], text: str) -> bool:
    here = states[0]
    for character in text:
        code = ord(character)
        to = next((to for ranges, to in here.ways if any(a <= code <= b for a, b in ranges)), None)
        if to is None:
            return False
        here = states[to]
    return here.is_end
