"""JSON strings as grammar rules that match one character each and name the rule that follows.

A token is then checked by one rule at a time, up to the string's closing quote. With counts and alternations,
the compiler (xgrammar 0.2.8) must try most tokens of a large vocabulary at each step: with 152k, the last
characters of a string with a maxLength took 10 ms a step, as rules 0.03.
"""

from __future__ import annotations

import re
import uuid
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass

from engine.structured.automaton import State, intersection
from engine.structured.regex import Node, Ranges, UnsupportedPattern

_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|.)")

MAX_RULES = 1024  # per grammar
_MAX_BROAD_RULES = 256  # rules that match text: each takes 20 ms to compile for a vocabulary of 152k
_BROAD = 1000  # characters


@dataclass(frozen=True, slots=True)
class StringRule:
    is_accepting: bool
    transitions: tuple[tuple[Ranges, str], ...]  # characters, and the rule that follows

    @property
    def is_broad(self) -> bool:
        return any(end - start >= _BROAD for ranges, _ in self.transitions for start, end in ranges)

    def __str__(self) -> str:
        quote = ['"\\""'] if self.is_accepting else []
        return " | ".join([*quote, *(f"[{_class(ranges)}] {name}" for ranges, name in self.transitions)])


class StringRules:
    """The rules of the strings in one grammar. A string that needs too many rules is left to the compiler."""

    def __init__(self) -> None:
        # Random, so that no schema contains it.
        self._prefix = f"string_{uuid.uuid4().hex}_"
        # The rule for a string's first character, by the wanted and unwanted expressions.
        self._names: dict[tuple[tuple[Node, ...], tuple[Node, ...]], str] = {}
        self._rules: dict[str, StringRule] = {}  # by name
        self._known: dict[StringRule, str] = {}  # shares equal rules, if they lead to no cycle
        self._num_broad = 0

    def stand_in(self, *wanted: Node, unwanted: Sequence[Node] = ()) -> str | None:
        """A constant string for the schema, which `insert` replaces by rules in quotes; None = too large.

        The rules match the texts that all wanted and no unwanted expressions match. Raises UnsupportedPattern
        if there are none.
        """
        text = wanted, tuple(unwanted)
        if text not in self._names:
            states = intersection(wanted, unwanted, max_states=MAX_RULES)
            if states == (State(False, ()),):
                raise UnsupportedPattern("no string satisfies all conditions")
            first = None if states is None else self._add(states)
            if first is None:
                return None
            self._names[text] = first
        return self._names[text]

    def __bool__(self) -> bool:
        """Whether there are placeholders."""
        return bool(self._names)

    def insert(self, printed: str) -> str:
        """The printed grammar with its placeholders replaced, and with the rules they refer to."""
        # Read again, `\xdf`, printed with two digits, would include digits that follow it.
        grammar = _ESCAPE.sub(lambda found: f"\\u00{found[1]}" if found[1] else found[0], printed)
        replaced = re.sub(rf'\\"({self._prefix}\w+)\\"', r'\\"" \1 "', grammar)
        lines = [f"{name} ::= {rule}" for name, rule in self._rules.items()]
        return "\n".join((replaced, *lines, ""))

    def _add(self, states: Sequence[State]) -> str | None:
        """The name of the first state's rule; None if there are too many rules."""
        prefix = f"{self._prefix}{len(self._names)}_"
        ordered = _from_the_end(states)
        names = {index: f"{prefix}{index}" for index in range(len(states)) if index not in ordered}
        rules = {}
        known = ChainMap({}, self._known)
        for index in (*ordered, *list(names)):
            rule = StringRule(
                states[index].is_accepting,
                tuple((chars, names[to]) for chars, to in states[index].transitions),
            )
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
    """The states that lead to no cycle, each after all its targets: so equal rules can be found by name."""
    found: dict[int, None] = {}
    is_new = True
    while is_new:
        before = len(found)
        for index in reversed(range(len(states))):
            if index not in found and all(to in found for _, to in states[index].transitions):
                found[index] = None
        is_new = len(found) > before
    return list(found)


def _class(ranges: Ranges) -> str:
    return "".join(f"{_char(start)}-{_char(end)}" for start, end in ranges)


def _char(code: int) -> str:
    return f"\\U{code:08x}"
