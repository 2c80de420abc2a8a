"""JSON strings as rules of a grammar that say one character each, and which rule goes on.

A token is then decided by one rule at a time, to the string's closing quote. With counts and choices, the
compiler (xgrammar 0.2.8) leaves most tokens of a large vocabulary to be tried at each step: of 152k, the last
characters of a string with a maxLength took 10 ms a step, as rules 0.03.
"""

from __future__ import annotations

import re
import uuid
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass

from engine.structured.automaton import State, combined
from engine.structured.regex import Node, Ranges, UnsupportedPattern

_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|.)")

MAX_RULES = 1024  # of one grammar
_MAX_BROAD_RULES = 256  # of those that take text: each takes 20 ms to compile for a vocabulary of 152k
_BROAD = 1000  # characters


@dataclass(frozen=True, slots=True)
class Rule:
    is_end: bool
    ways: tuple[tuple[Ranges, str], ...]  # characters, and the rule that goes on

    @property
    def is_broad(self) -> bool:
        return any(end - start >= _BROAD for ranges, _ in self.ways for start, end in ranges)

    def __str__(self) -> str:
        quote = ['"\\""'] if self.is_end else []
        return " | ".join([*quote, *(f"[{_class(ranges)}] {name}" for ranges, name in self.ways)])


class StringRules:
    """Of the strings in one grammar. A string is left to the compiler where its rules would be too many."""

    def __init__(self) -> None:
        # Not to be found in anybody's schema.
        self._mark = f"string_{uuid.uuid4().hex}_"
        # Of the rule at a string's first character, by what matches the string, and what doesn't.
        self._names: dict[tuple[tuple[Node, ...], tuple[Node, ...]], str] = {}
        self._rules: dict[str, Rule] = {}  # by name
        self._known: dict[Rule, str] = {}  # so that equal ones are one: those that lead to no circle
        self._num_broad = 0

    def stand_in(self, *wanted: Node, unwanted: Sequence[Node] = ()) -> str | None:
        """A constant string for the schema, which `insert` replaces by text in quotes; None = too large.

        The text is one that all the wanted expressions match, and no unwanted one. Raises UnsupportedPattern
        if there is none.
        """
        text = wanted, tuple(unwanted)
        if text not in self._names:
            states = combined(wanted, unwanted, max_states=MAX_RULES)
            if states == (State(False, ()),):
                raise UnsupportedPattern("no string is all that is asked for")
            first = None if states is None else self._add(states)
            if first is None:
                return None
            self._names[text] = first
        return self._names[text]

    def __bool__(self) -> bool:
        """Whether there are stand-ins."""
        return bool(self._names)

    def insert(self, printed: str) -> str:
        """The grammar with its stand-ins replaced, and the rules they lead to; as the compiler printed it."""
        # Printed with two digits, `\xdf` would take in digits that follow, when it is read again.
        grammar = _ESCAPE.sub(lambda found: f"\\u00{found[1]}" if found[1] else found[0], printed)
        replaced = re.sub(rf'\\"({self._mark}\w+)\\"', r'\\"" \1 "', grammar)
        lines = [f"{name} ::= {rule}" for name, rule in self._rules.items()]
        return "\n".join((replaced, *lines, ""))

    def _add(self, states: Sequence[State]) -> str | None:
        """The name of the first state's rule; None where they are too many."""
        prefix = f"{self._mark}{len(self._names)}_"
        ordered = _from_the_end(states)
        names = {index: f"{prefix}{index}" for index in range(len(states)) if index not in ordered}
        rules = {}
        known = ChainMap({}, self._known)
        for index in (*ordered, *list(names)):
            rule = Rule(states[index].is_end, tuple((chars, names[to]) for chars, to in states[index].ways))
            if index in names:
                rules[names[index]] = rule
            else:
                names[index] = known.setdefault(rule, f"{prefix}{index}")
                if rule not in self._known:
                    rules[names[index]] = rule
        num_broad = self._num_broad + sum(rule.is_broad for rule in rules.values())
        if len(self._rules) + len(rules) > MAX_RULES or num_broad > _MAX_BROAD_RULES:
            return None
        self._rules |= rules
        self._known.update(known.maps[0])
        self._num_broad = num_broad
        return names[0]


def _from_the_end(states: Sequence[State]) -> list[int]:
    """Those that lead to no circle, each after all it leads to: so equal ones can be found by name."""
    found: dict[int, None] = {}
    is_new = True
    while is_new:
        before = len(found)
        for index in reversed(range(len(states))):
            if index not in found and all(to in found for _, to in states[index].ways):
                found[index] = None
        is_new = len(found) > before
    return list(found)


def _class(ranges: Ranges) -> str:
    return "".join(f"{_char(start)}-{_char(end)}" for start, end in ranges)


def _char(code: int) -> str:
    return f"\\U{code:08x}"
