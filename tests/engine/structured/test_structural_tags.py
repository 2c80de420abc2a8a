"""Structural tags: text with parts that follow schemas, expressions and grammars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.structured import StructuredKind, StructuredOutput
from tests.engine.structured.walking import Walker

OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
LEGACY = {
    "structures": [
        {"begin": "<function=f>", "schema": OBJECT, "end": "</function>"},
        {"begin": "<function=g>", "schema": {"type": "integer"}, "end": "</function>"},
    ],
    "triggers": ["<function="],
}
CALL = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "n": {"type": "integer", "minimum": 1},
        "o": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]},
        "e": {"enum": ["a b", 3, None]},
        "l": {"type": "array", "items": {"$ref": "#/$defs/s"}},
        "s": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        "u": {"type": ["integer", "null"]},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"s": {"type": "string", "maxLength": 2}},
}


def tag(form: dict[str, Any]) -> dict[str, Any]:
    return {"type": "structural_tag", "format": form}


def between(begin: str, content: dict[str, Any], end: str) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def constant(text: str) -> dict[str, Any]:
    return {"type": "const_string", "value": text}


def matching(pattern: str) -> dict[str, Any]:
    return {"type": "regex", "pattern": pattern}


def following(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": schema, **more}


def written(**values: str) -> str:
    inner = "\n".join(f"<parameter={name}>\n{value}\n</parameter>" for name, value in values.items())
    return f"<f>\n{inner}\n</f>"


TAGS: dict[str, tuple[dict[str, Any], Sequence[str], Sequence[str]]] = {
    "of the older form": (
        LEGACY,
        ["", "hello", 'hi <function=f>{"a": "x"}</function> and <function=g>3</function>', "a <func b"],
        ["<function=f>3</function>", "<function=h>3</function>", "x<function="],
    ),
    "with two triggers": (
        tag(
            {
                "type": "triggered_tags",
                "triggers": ["<a>", "[b]"],
                "tags": [
                    between("<a>", matching("[a-z<]*"), "</a>"),
                    between("[b]", {"type": "any_text"}, "[/b]"),
                ],
            }
        ),
        ["x", "1<a>abc<</a>2[b]hm[/b] <", "[b]a<a>b[/b]"],
        ["<a>1</a>", "[b]x"],
    ),
    "once": (
        tag(
            {
                "type": "triggered_tags",
                "triggers": ["<a>"],
                "tags": [between("<a>", constant("k"), "</a>")],
                "stop_after_first": True,
            }
        ),
        ["x", "x<a>k</a>"],
        ["x<a>k</a>y"],
    ),
    "at least once": (
        tag(
            {
                "type": "triggered_tags",
                "triggers": ["<a>"],
                "tags": [between("<a>", constant("k"), "</a>")],
                "at_least_one": True,
            }
        ),
        ["x<a>k</a>", "<a>k</a>y"],
        ["x"],
    ),
    "with separators": (
        tag(
            {
                "type": "tags_with_separator",
                "separator": ",",
                "tags": [
                    between("<a>", following(OBJECT), "</a>"),
                    between("<b>", matching("[0-9]+"), "</b>"),
                ],
            }
        ),
        ["", '<a>{"a":"1"}</a>', '<b>12</b>,<a>{"a":"1"}</a>,<b>1</b>'],
        ["<b>12</b>;<b>1</b>", "<b>12</b>,"],
    ),
    "in a sequence": (
        tag(
            {
                "type": "sequence",
                "elements": [
                    constant("ab"),
                    matching("[a-c]*"),
                    constant("c"),
                    {"type": "optional", "content": constant("!")},
                ],
            }
        ),
        ["abcc", "abaac!"],
        ["ab"],
    ),
    "of a grammar": (
        tag(
            {
                "type": "sequence",
                "elements": [constant("ab"), {"type": "grammar", "grammar": 'root ::= "x" root | "y"'}],
            }
        ),
        ["abxxy", "aby"],
        ["abx"],
    ),
    "repeated": (
        tag(
            {
                "type": "repeat",
                "min": 1,
                "max": 2,
                "content": {"type": "or", "elements": [constant("a"), following({"type": "integer"})]},
            }
        ),
        ["a", "aa", "a7"],
        ["", "aaa"],
    ),
    "of parameters": (
        tag(between("<f>\n", following(CALL, style="qwen_xml"), "\n</f>")),
        [
            written(city="Oslo\n<b>"),
            written(city="x", n="3"),
            written(city="x", o='{"x": "y"}'),
            written(city="x", e="a b"),
            written(city="x", l='["ab", "c"]'),
            written(city="x", s="abc"),
            written(city="x", s="null"),
            written(city="x", u="null"),
        ],
        [
            written(city="x", n="0"),
            written(n="3"),
            written(city="x", e="c"),
            written(city="x", l='["abc"]'),
            written(city="x", s="abcd"),
            written(city="x", u="one"),
            written(city="x", other="1"),
        ],
    ),
}


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


@pytest.mark.parametrize("name", TAGS)
async def test_a_tag_takes_its_texts(walker: Walker, name: str) -> None:
    source, good, bad = TAGS[name]
    wanted = StructuredOutput(StructuredKind.STRUCTURAL_TAG, json.dumps(source), "tag")
    compiled = await walker.grammar_compiler.compile(wanted)
    assert [text for text in good if not walker.takes(compiled, text)] == []
    assert [text for text in bad if walker.takes(compiled, text)] == []


@pytest.mark.parametrize(
    ("source", "param", "what"),
    [
        (tag({"type": "dispatch", "rules": []}), "tag.format.type", "'dispatch'; supported are const_string"),
        (tag(between(3, constant("a"), "")), "tag.format.begin", "must be a string, not 3"),  # type: ignore[arg-type]
        (tag(following({"pattern": "(?=a)"})), "tag.format.json_schema.pattern", "look-around"),
        (tag(matching("(")), "tag.format.pattern", "can't be enforced"),
        (tag(following({}, style="glm_xml")), "tag.format.style", "'glm_xml'; supported are json"),
        (
            tag({"type": "triggered_tags", "triggers": ["<a>"], "tags": [between("<b>", constant(""), "")]}),
            "tag.format.tags[0].begin",
            "none of the triggers",
        ),
        ({"structures": [3], "triggers": []}, "tag", "a list of objects with begin, schema and end"),
        (tag({"type": "sequence", "elements": []}), "tag.format.elements", "with something in it"),
        ([], "tag", "must be an object"),
    ],
)
async def test_what_a_tag_can_not_be_is_named(walker: Walker, source: Any, param: str, what: str) -> None:
    wanted = StructuredOutput(StructuredKind.STRUCTURAL_TAG, json.dumps(source), "tag")
    with pytest.raises(InvalidRequest, match=what) as raised:
        await walker.grammar_compiler.compile(wanted)
    assert raised.value.param == param
