"""Parts of a grammar in Lark's form, as the compiler (llguidance) reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MAX_WHITESPACE = 16  # characters between two JSON tokens: enough to indent, but not endless blanks
_JSON_OPTIONS = {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{_MAX_WHITESPACE}}}"}
WHITESPACE = rf"/[ \n\r\t]{{0,{_MAX_WHITESPACE}}}/"


@dataclass(frozen=True, slots=True)
class Part:
    """What matches a part of the output."""

    text: str  # an expression in Lark's form
    is_regular: bool  # whether it can be a part of a terminal
    is_single: bool = True  # whether it needs no parentheses

    def __str__(self) -> str:
        return self.text if self.is_single else f"({self.text})"


class Rules:
    """The rules of one grammar, by which its parts name each other."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # by definition
        self._apart: list[str] = []  # grammars with terminals of their own

    def grammar(self, start: Part) -> str:
        lines = [f"start: {self.named(start) if start.is_regular else start.text}"]
        lines += [f"{name}: {definition}" for definition, name in self._names.items()]
        return "\n".join(lines) + "\n"

    @property
    def apart(self) -> Sequence[str]:
        return self._apart

    def named(self, part: Part) -> str:
        """The name of a terminal, for a regular part, or of a rule."""
        return self._name(part.text, "T" if part.is_regular else "r")

    def json(self, schema: Any) -> Part:
        return Part(self._name(f"%json {json.dumps(with_options(schema))}", "json"), False)

    def grammar_apart(self, source: str) -> Part:
        self._apart.append(source)
        return Part(self._name(f"@g{len(self._apart)}", "g"), False)

    def text_until(self, trigger: str, excludes: Sequence[str]) -> Part:
        """Any text up to the first `trigger`, with that."""
        text = f"{without(excludes)} {literal(trigger)}" if excludes else f"{_ANY} {literal(trigger)}"
        name = self._name(text, "T")
        return Part(self._name(name, "lazy", "[lazy]"), False)

    def _name(self, definition: str, kind: str, options: str = "") -> str:
        key = definition
        if key not in self._names:
            self._names[key] = f"{kind}{len(self._names)}{options}"
        return self._names[key].removesuffix(options) if options else self._names[key].partition("[")[0]


def with_options(schema: Any) -> dict[str, Any]:
    return {**(schema if isinstance(schema, dict) else {}), "x-guidance": _JSON_OPTIONS}


def literal(text: str) -> Part:
    return Part(json.dumps(text, ensure_ascii=False), True)


def regex(pattern: str) -> Part:
    return Part(f"/{pattern}/", True) if pattern else literal("")


_ANY = "/(?s:.*)/"


def without(excluded: Sequence[str]) -> Part:
    """Any text in which none of these occurs."""
    found = [f"~({_ANY} {literal(text)} {_ANY})" for text in dict.fromkeys(excluded)]
    return Part(" & ".join([_ANY, *found]), True, is_single=not found)


def sequence(rules: Rules, parts: Sequence[Part]) -> Part:
    """One after the other; neighbours that are regular become one terminal."""
    kept = [part for part in parts if part.text != '""']
    if not kept:
        return literal("")
    if all(part.is_regular for part in kept):
        return Part(" ".join(map(str, kept)), True, is_single=len(kept) == 1 and kept[0].is_single)
    written: list[str] = []
    run: list[Part] = []
    for part in [*kept, None]:
        if part is not None and part.is_regular:
            run.append(part)
            continue
        if run:
            written.append(rules.named(Part(" ".join(map(str, run)), True)))
            run = []
        written += [] if part is None else [str(part)]
    return Part(" ".join(written), False, is_single=len(written) == 1)


def either(rules: Rules, parts: Sequence[Part]) -> Part:
    distinct = list({part.text: part for part in parts}.values())
    if len(distinct) == 1:
        return distinct[0]
    if all(part.is_regular for part in distinct):
        return Part(" | ".join(map(str, distinct)), True, is_single=False)
    texts = [rules.named(part) if part.is_regular and part.text != '""' else str(part) for part in distinct]
    return Part(rules.named(Part(" | ".join(texts), False)), False)


def optional(part: Part) -> Part:
    return Part(f"{_atom(part)}?", part.is_regular)


def repeated(part: Part, least: int, most: int | None) -> Part:
    marks: dict[tuple[int, int | None], str] = {(0, None): "*", (1, None): "+"}
    count = marks.get((least, most), f"{{{least},{'' if most is None else most}}}")
    return Part(f"{_atom(part)}{count}", part.is_regular)


def _atom(part: Part) -> str:
    return f"({part.text})"
