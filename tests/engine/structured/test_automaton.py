"""Expressions as automata: they accept what Python's `re` accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.structured.automaton import State, automaton
from engine.structured.grammar_compiler import GrammarCompiler
from engine.structured.regex import (
    Alternation,
    Chars,
    Concatenation,
    Node,
    Repeat,
    full_match,
    to_pattern,
)
from engine.structured.regex_parser import parse
from engine.structured.spec import StructuredKind, StructuredOutput
from engine.text.tokenizer import load_tokenizer

DEMO = Path(__file__).parents[3] / "models" / "berth-demo"

letters = st.sampled_from("abc")
expressions = st.recursive(
    st.builds(lambda low, high: Chars(((ord(min(low, high)), ord(max(low, high))),)), letters, letters),
    lambda inner: st.one_of(
        st.builds(lambda parts: Concatenation(tuple(parts)), st.lists(inner, max_size=3)),
        st.builds(lambda parts: Alternation(tuple(parts)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda part, least, more: Repeat(part, least, None if more is None else least + more),
            inner,
            st.integers(0, 2),
            st.none() | st.integers(0, 2),
        ),
    ),
    max_leaves=6,
)


def accepts(states: tuple[State, ...], text: str) -> bool:
    here = 0
    for character in text:
        targets = [
            to for ranges, to in states[here].transitions for a, b in ranges if a <= ord(character) <= b
        ]
        if not targets:
            return False
        (here,) = targets
    return states[here].is_accepting


@given(expressions, st.lists(st.text("abcd", max_size=7), min_size=5, max_size=20))
@settings(deadline=None)
def test_an_automaton_accepts_what_the_expression_matches(node: Node, texts: list[str]) -> None:
    states = automaton(node, max_states=5000)
    assert states is not None
    expected = re.compile(to_pattern(node))
    for text in texts:
        assert accepts(states, text) == (expected.fullmatch(text) is not None), (to_pattern(node), text)


@pytest.mark.parametrize("pattern", [".{2000}", "[ab]*a[ab]{20}", "((a{40}){40}){40}"])
def test_an_automaton_that_grows_too_large_is_given_up(pattern: str) -> None:
    assert automaton(full_match(parse(pattern)), max_states=1000) is None


LONG = {"type": "string", "maxLength": 300}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "maxLength": 6}, ["", 'a"b\\c\n', "äöü€𝄞x"], ["1234567", "äöü€𝄞xy"]),
        ({"type": "string", "minLength": 3}, ["abc", '"\\\n', "x" * 500], ["", "ab", "𝄞𝄞"]),
        ({"type": ["string", "null"], "maxLength": 2}, ["ab", None], ["abc", 1]),
        ({"type": "string", "pattern": "^a.*z$"}, ["az", 'a"\\z'], ["ab", "xaz", "a\nz"]),
        ({"type": "string", "pattern": "b"}, ["b", "abc"], ["", "ac"]),
        ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29", "2024-2-9"]),
        (
            {
                "type": "object",
                "properties": {"größe": {"type": "string", "maxLength": 2}, "k": {"const": "ÿa\\xdfe日a"}},
                "required": ["größe", "k"],
                "additionalProperties": False,
            },
            [{"größe": "ab", "k": "ÿa\\xdfe日a"}],
            [{"größe": "abc", "k": "ÿa\\xdfe日a"}, {"größe": "", "k": "ÿ"}],
        ),
        (LONG, ["", "x" * 300], ["x" * 301]),
        (
            {
                "anyOf": [
                    {"type": "string", "maxLength": 1},
                    {"type": "string", "minLength": 3, "maxLength": 3},
                ]
            },
            ["", "a", "abc"],
            ["ab", "abcd"],
        ),
        (
            {"type": "object", "propertyNames": {"pattern": "^[ab]{1,2}$"}, "additionalProperties": True},
            [{"a": 1, "bb": 2}],
            [{"c": 1}, {"aba": 1}],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/short"}, "b": {"$ref": "#/$defs/short"}},
                "required": ["a", "b"],
                "additionalProperties": False,
                "$defs": {"short": {"type": "string", "maxLength": 3}},
            },
            [{"a": "xyz", "b": ""}],
            [{"a": "xyzw", "b": ""}, {"a": "", "b": "1234"}],
        ),
    ],
    ids=str,
)
async def test_a_schema_allows_valid_values_only(
    schema: object, good: list[object], bad: list[object]
) -> None:
    tokenizer = load_tokenizer(DEMO)
    eos = tokenizer.eos_token_id
    assert eos is not None
    grammar_compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[eos])
    wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(schema), "response_format")
    compiled = await grammar_compiler.compile(wanted)

    def takes(value: object) -> bool:
        constraint = grammar_compiler.constraint(compiled)
        try:
            for token in [
                *tokenizer.encode(json.dumps(value, ensure_ascii=False), add_special_tokens=False),
                eos,
            ]:
                constraint.accept(token)
        except ValueError:
            return False
        return True

    assert [value for value in good if not takes(value)] == []
    assert [value for value in bad if takes(value)] == []
