"""Combines the words of a JSON schema about a string: formats, patterns and lengths.

Formats that JSON parsers and APIs know are enforced; all others (`password`, `int64`, `file-path` …) are
annotations, as in JSON Schema, and constrain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.structured.automaton import State, intersection
from engine.structured.json_parts import (
    MAX_COUNT,
    NOT_PATTERN,
    NOT_VALUES,
    SchemaErrors,
    SchemaPart,
    is_number,
)
from engine.structured.regex import (
    ANY_CHARACTER,
    Chars,
    Concatenation,
    Node,
    Repeat,
    UnsupportedPattern,
    full_match,
    search,
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
_HEX = "[0-9A-Fa-f]"
_H16 = rf"{_HEX}{{1,4}}"
_SEGMENT = r"([A-Za-z0-9._~!$&'()*+,;=:@\-]|%[0-9A-Fa-f]{2})"
_TAIL = rf"(/{_SEGMENT}*)*(\?({_SEGMENT}|[/?])*)?(#({_SEGMENT}|[/?])*)?"
# The compiler knows these itself; the expressions here, which match only some of their texts, are used if the
# string has other conditions too.
_COMPILERS = {
    "duration": r"P(\d{1,4}W|\d{1,4}D(T\d{1,4}H(\d{1,4}M(\d{1,4}S)?)?)?|T(\d{1,4}H|\d{1,4}M|\d{1,4}S))",
    "ipv6": rf"(({_H16}:){{7}}{_H16}|({_H16}:){{1,3}}(:{_H16}){{1,4}}|::({_H16}(:{_H16}){{0,6}})?)",
    "uri": rf"[A-Za-z][A-Za-z0-9+.\-]{{0,15}}://{_HOSTNAME}(:\d{{1,4}})?{_TAIL}",
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
    "uri-reference": rf"([A-Za-z][A-Za-z0-9+.\-]{{0,15}}://{_HOSTNAME}(:\d{{1,4}})?)?/{_TAIL}",
    "uri-template": r"([A-Za-z0-9._~/:\-]|\{[A-Za-z0-9_]{1,32}\})*",
}
FORMATS = {**_OURS, **_COMPILERS}
_MAX_STATES = 1024  # of an automaton that texts are matched with


@dataclass(frozen=True, slots=True)
class Text:
    """The conditions on a string; without any, all fields are empty."""

    path: str
    wanted: tuple[Node, ...] = ()  # all of these match it
    unwanted: tuple[Node, ...] = ()  # none of these matches it
    least: int = 0
    most: int | None = None
    format: str | None = None  # if there is no other condition, so that the compiler's own format suffices

    @property
    def known(self) -> tuple[Node, ...]:
        """The expressions that match it, including those of the compiler's own formats."""
        return self.wanted or ((full_match(parse(FORMATS[self.format])),) if self.format else ())

    @property
    def length(self) -> Node | None:
        if not self.least and self.most is None:
            return None
        return Repeat(Chars(ANY_CHARACTER), self.least, self.most)


def read_text(parts: Sequence[SchemaPart], errors: SchemaErrors) -> Text | None:
    """None if no string can have the required length."""
    wanted: list[Node] = []
    unwanted: list[Node] = []
    formats = dict.fromkeys(name for part in parts if (name := part.schema.get("format")) in FORMATS)
    for part in parts:
        wanted += _pattern(part, "pattern", errors)
        unwanted += _pattern(part, NOT_PATTERN, errors)
        values = part.schema.get(NOT_VALUES, ())
        unwanted += [_literal(value) for value in values if isinstance(value, str)]
    least = max((read_count(part, "minLength", 0, errors) for part in parts), default=0)
    most = min(
        (read_count(part, "maxLength", MAX_COUNT + 1, errors) for part in parts), default=MAX_COUNT + 1
    )
    if least > most:
        return None
    is_bare = len(formats) == 1 and not wanted and not unwanted and not least and most > MAX_COUNT
    only = next(iter(formats), None) if is_bare else None
    wanted += [full_match(parse(FORMATS[name])) for name in formats if only not in _COMPILERS]
    path = next((part.path for part in parts), "")
    bound = None if all("maxLength" not in part.schema for part in parts) else most
    return Text(path, tuple(wanted), tuple(unwanted), least, bound, only)


def matches(text: str, node: Node) -> bool | None:
    """Whether the expression matches the whole text; None if it is too large to decide."""
    states = _automaton(node)
    return None if states is None else _accepts(states, text)


def is_valid_string(value: str, schema: dict[str, Any]) -> bool:
    """Whether a string satisfies one schema's words about strings."""
    try:
        text = read_text([SchemaPart.at(schema, "")], SchemaErrors(is_strict=False))
    except UnsupportedPattern:
        return True
    if text is None or not text.least <= len(value) <= (text.most if text.most is not None else len(value)):
        return False
    return all(matches(value, node) is not False for node in text.known) and not any(
        matches(value, node) for node in text.unwanted
    )


def name_matches(pattern: str, name: str) -> bool:
    """Whether the expression matches anywhere in it. Raises UnsupportedPattern."""
    return matches(name, search(parse(pattern))) is not False


def _pattern(part: SchemaPart, word: str, errors: SchemaErrors) -> list[Node]:
    pattern = part.schema.get(word)
    if pattern is None:
        return []
    if not isinstance(pattern, str):
        errors.malformed(part.path, word, "must be a string")
        return []
    try:
        return [search(parse(pattern))]
    except UnsupportedPattern as error:
        named = "not" if word == NOT_PATTERN else word
        errors.refuse(part.path, named, f"can't be enforced: {error}")
        return []


def read_count(part: SchemaPart, word: str, default: int, errors: SchemaErrors) -> int:
    """A whole number of the schema, limited to the largest that the compiler can count to."""
    value = part.schema.get(word)
    if value is None:
        return default
    if not is_number(value) or value != int(value) or value < 0:
        errors.malformed(part.path, word, f"must be a whole number, not {value!r:.40}")
        return default
    if value > MAX_COUNT and word.startswith("min"):
        errors.refuse(part.path, word, f"is {value}; at most {MAX_COUNT} is supported")
        return default
    return min(int(value), MAX_COUNT)


def _literal(text: str) -> Node:
    return Concatenation(tuple(Chars(((ord(character), ord(character)),)) for character in text))


@lru_cache(maxsize=256)
def _automaton(node: Node) -> tuple[State, ...] | None:
    return intersection([node], max_states=_MAX_STATES)


def _accepts(states: Sequence[State], text: str) -> bool:
    here = states[0]
    for character in text:
        code = ord(character)
        to = next((to for ranges, to in here.transitions if any(a <= code <= b for a, b in ranges)), None)
        if to is None:
            return False
        here = states[to]
    return here.is_accepting
