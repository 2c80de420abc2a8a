"""Writes the strings of a normalised schema with the words that the compiler enforces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.structured.automaton import State, intersection
from engine.structured.json_parts import SchemaErrors
from engine.structured.json_texts import Text
from engine.structured.regex import (
    ANY_CHARACTER,
    ANY_TEXT,
    Alternation,
    Chars,
    Concatenation,
    Node,
    Repeat,
    UnsupportedPattern,
    check_counts,
    full_match,
    restricted,
    to_pattern,
)
from engine.structured.regex_parser import parse

# Our own words in a normalised schema, until its strings are written: a Text; and that no type was named.
TEXT = "~text"
IMPLIED = "~implied"
_MAX_STATES = 64  # of the automaton of a text with excluded expressions


def write_strings(schema: Any, errors: SchemaErrors) -> None:
    """Write a normalised schema's strings in place."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        part.pop(IMPLIED, None)
        if isinstance(part.get(TEXT), Text):
            text = part.pop(TEXT)
            part |= _string_schema(text, errors)
            continue
        waiting += [part[word] for word in ("items", "additionalProperties") if word in part]
        waiting += [child for word in ("anyOf", "prefixItems") for child in part.get(word, ())]
        waiting += [
            child
            for word in ("properties", "patternProperties", "$defs")
            for child in part.get(word, {}).values()
        ]


def _string_schema(text: Text, errors: SchemaErrors) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if text.format is not None and not text.wanted:
        return {**schema, "format": text.format}
    try:
        patterns = [f"^({plain_text(node)})$" for node in _wanted(text)]
    except UnsupportedPattern as error:
        word = "pattern" if text.wanted else "not"
        errors.refuse(text.path, word, f"can't be enforced: {error}")
        return schema
    if len(patterns) == 1:
        schema["pattern"] = patterns[0]
    elif patterns:
        schema["allOf"] = [{"pattern": pattern} for pattern in patterns]
    schema |= {"minLength": text.least} if text.least else {}
    return schema | ({} if text.most is None else {"maxLength": text.most})


def _wanted(text: Text) -> Sequence[Node]:
    if not text.unwanted:
        return text.known
    states = intersection(text.known or [ANY_TEXT], text.unwanted, max_states=_MAX_STATES)
    if states is None:
        raise UnsupportedPattern("it is too large")
    return [_expression(states)]


def _expression(states: Sequence[State]) -> Node:
    """The automaton as an expression: states are removed one by one. Raises UnsupportedPattern if none."""
    end = len(states)
    edges: dict[tuple[int, int], Node] = {}
    for index, state in enumerate(states):
        for ranges, to in state.transitions:
            _add_edge(edges, index, to, Chars(ranges))
        if state.is_accepting:
            _add_edge(edges, index, end, Concatenation(()))
    _add_edge(edges, -1, 0, Concatenation(()))
    for gone in range(len(states)):
        loop = edges.pop((gone, gone), None)
        before = [(source, node) for (source, to), node in edges.items() if to == gone]
        after = [(to, node) for (source, to), node in edges.items() if source == gone]
        edges = {key: node for key, node in edges.items() if gone not in key}
        middle = () if loop is None else (Repeat(loop, 0, None),)
        for source, first in before:
            for to, last in after:
                _add_edge(edges, source, to, Concatenation((first, *middle, last)))
    if (-1, end) not in edges:
        raise UnsupportedPattern("no string satisfies all conditions")
    return edges[-1, end]


def _add_edge(edges: dict[tuple[int, int], Node], source: int, to: int, node: Node) -> None:
    known = edges.get((source, to))
    edges[source, to] = node if known is None else Alternation((known, node))


def name_pattern(text: Text, errors: SchemaErrors) -> str:
    """The text as a pattern for names. Raises UnsupportedPattern."""
    nodes = [*_wanted(text), *([text.length] if text.length else [])]
    if len(nodes) == 1:
        return f"^({plain_text(nodes[0])})$"
    states = intersection(nodes or [ANY_TEXT], max_states=_MAX_STATES)
    if states is None:
        raise UnsupportedPattern("beside a length it is too large: put the length into the pattern")
    return f"^({plain_text(_expression(states))})$"


def plain_pattern(pattern: str) -> str:
    """A pattern of the texts that `pattern` matches entirely, outside of JSON. Raises UnsupportedPattern."""
    return plain_text(full_match(parse(pattern)))


def plain_text(node: Node) -> str:
    left = restricted(node, ANY_CHARACTER)
    if left is None:
        raise UnsupportedPattern("it matches nothing")
    check_counts(left)
    return to_pattern(left)
