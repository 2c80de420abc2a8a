"""Structured output: whatever the model, the output has the requested format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal
from conformance.client import CHAT, COMPLETIONS, WIDE, Api

group = Group("structured", Need.GENERATE)

_MAX_TOKENS = 200


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_COLOUR = {"enum": ["red", "green", "blue"]}
Holds = Callable[[Any], bool]
# Schemas whose values are short, and a check of the values.
_SCHEMAS: dict[str, tuple[dict[str, Any], Holds]] = {
    "enum": (_object(colour=_COLOUR), lambda value: value["colour"] in _COLOUR["enum"]),
    "boolean": (_object(is_it={"type": "boolean"}), lambda value: isinstance(value["is_it"], bool)),
    "null": (_object(nothing={"type": "null"}), lambda value: value == {"nothing": None}),
    "const": (_object(kind={"const": "cat"}), lambda value: value == {"kind": "cat"}),
    "number-enum": (_object(size={"enum": [1, 2, 3]}), lambda value: value["size"] in (1, 2, 3)),
    "array": (
        _object(flags={"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}),
        lambda value: 2 <= len(value["flags"]) <= 3,
    ),
    "max-length": (
        _object(name={"type": "string", "maxLength": 5}),
        lambda value: isinstance(value["name"], str) and len(value["name"]) <= 5,
    ),
    "pattern": (
        _object(code={"type": "string", "pattern": "^[a-c]{3}$"}),
        lambda value: re.fullmatch("[a-c]{3}", value["code"]) is not None,
    ),
    "integer-range": (
        _object(digit={"type": "integer", "minimum": 0, "maximum": 9}),
        lambda value: 0 <= value["digit"] <= 9,
    ),
    "nested": (
        _object(outer=_object(inner=_COLOUR)),
        lambda value: value["outer"]["inner"] in _COLOUR["enum"],
    ),
    "any-of": (
        _object(either={"anyOf": [{"const": 1}, {"const": "one"}]}),
        lambda value: value["either"] in (1, "one"),
    ),
    "reference": (
        {**_object(colour={"$ref": "#/$defs/colour"}), "$defs": {"colour": _COLOUR}},
        lambda value: value["colour"] in _COLOUR["enum"],
    ),
    "two-fields": (
        _object(colour=_COLOUR, is_it={"type": "boolean"}),
        lambda value: list(value) == ["colour", "is_it"],
    ),
    "array-at-the-top": (
        {"type": "array", "items": _COLOUR, "minItems": 1, "maxItems": 2},
        lambda value: isinstance(value, list) and value[0] in _COLOUR["enum"],
    ),
    "unicode": (_object(größe={"enum": ["groß", "klein", "你好"]}), lambda value: list(value) == ["größe"]),
}
# Other kinds of vLLM's `structured_outputs`, and a pattern of the output.
_OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "choice": ({"choice": ["yes", "no"]}, "yes|no"),
    "choice-of-one": ({"choice": ["maybe"]}, "maybe"),
    "choice-with-a-common-beginning": ({"choice": ["car", "carpet", "cargo"]}, "car|carpet|cargo"),
    "regex": ({"regex": r"[a-c]{3}-\d{2}"}, r"[a-c]{3}-\d{2}"),
    "regex-alternatives": ({"regex": r"(cat|dog)s?"}, r"(cat|dog)s?"),
    "grammar": ({"grammar": 'root ::= "yes" | "no" " way"'}, "yes|no way"),
    "grammar-with-rules": (
        {"grammar": 'root ::= digit digit "." digit\ndigit ::= [0-9]'},
        r"\d\d\.\d",
    ),
    "json": ({"json": _object(colour=_COLOUR)}, r'\{\s*"colour"\s*:\s*"(red|green|blue)"\s*\}'),
}


def _format(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def _free(**fields: Any) -> dict[str, Any]:
    return {"ignore_eos": False, "max_tokens": _MAX_TOKENS, **fields}


def _holds(text: str, reason: str, holds: Holds) -> None:
    equal(reason, "stop", f"finish_reason of {text!r}")
    try:
        value = json.loads(text)
    except ValueError:
        check(False, f"not JSON: {text!r}")
    check(holds(value), f"does not follow the schema: {text!r}")


def _matches(text: str, reason: str, pattern: str) -> None:
    equal(reason, "stop", f"finish_reason of {text!r}")
    check(re.fullmatch(pattern, text), f"{text!r} doesn't match {pattern}")


@group.each(_SCHEMAS, Need.CHAT)
async def a_chat_follows_the_schema(api: Api, schema: tuple[dict[str, Any], Holds]) -> None:
    """Completely: optional white space must be limited."""
    answer = await api.chat(**_free(response_format=_format(schema[0])))
    choice = answer["choices"][0]
    _holds(choice["message"]["content"], choice["finish_reason"], schema[1])


@group.each(_SCHEMAS)
async def wide_sampling_follows_the_schema(api: Api, schema: tuple[dict[str, Any], Holds]) -> None:
    fields = {**WIDE, "seed": 5, "structured_outputs": {"json": schema[0]}}
    choice = (await api.complete(**_free(**fields)))["choices"][0]
    _holds(choice["text"], choice["finish_reason"], schema[1])


@group.each(_OTHERS)
async def a_completion_follows(api: Api, form: tuple[dict[str, Any], str]) -> None:
    choice = (await api.complete(**_free(structured_outputs=form[0])))["choices"][0]
    _matches(choice["text"], choice["finish_reason"], form[1])


@group.each(_OTHERS, Need.CHAT)
async def a_chat_follows(api: Api, form: tuple[dict[str, Any], str]) -> None:
    answer = await api.chat(**_free(structured_outputs=form[0], **WIDE, seed=2))
    choice = answer["choices"][0]
    _matches(choice["message"]["content"], choice["finish_reason"], form[1])


@group.each({name: _OTHERS[name] for name in ("choice", "regex", "json")})
async def a_stream_follows(api: Api, form: tuple[dict[str, Any], str]) -> None:
    stream = await api.stream_completion(**_free(structured_outputs=form[0], **WIDE, seed=3))
    _matches(stream.text(), stream.end()["finish_reason"], form[1])


@group.case(Need.CHAT)
async def a_streamed_schema_is_the_same_as_whole(api: Api) -> None:
    fields = _free(response_format=_format(_SCHEMAS["two-fields"][0]))
    stream, whole = await api.stream_chat(**fields), await api.chat(**fields)
    equal(stream.text(), whole["choices"][0]["message"]["content"], "content")


@group.case(Need.CHAT)
async def strict_is_accepted(api: Api) -> None:
    schema, holds = _SCHEMAS["enum"]
    choice = (await api.chat(**_free(response_format=_format(schema, strict=True))))["choices"][0]
    _holds(choice["message"]["content"], choice["finish_reason"], holds)


@group.case(Need.CHAT)
async def any_object(api: Api) -> None:
    """The output is an object, unless the model reaches its token limit."""
    choice = (await api.chat(**_free(response_format={"type": "json_object"})))["choices"][0]
    text = choice["message"]["content"] or ""
    if choice["finish_reason"] == "stop":
        check(isinstance(json.loads(text), dict), f"not an object: {text!r}")
    else:
        equal(choice["finish_reason"], "length", "finish_reason")
        check(text.lstrip().startswith("{"), f"not the beginning of an object: {text!r}")


@group.case()
async def truncated_output_ends_with_length(api: Api) -> None:
    choice = (await api.complete(**_free(structured_outputs={"regex": "[a-z]{100}"}, max_tokens=4)))[
        "choices"
    ][0]
    equal(choice["finish_reason"], "length", "finish_reason")
    check(re.fullmatch("[a-z]+", choice["text"]), f"text {choice['text']!r}")


@group.each(
    {
        "n": {"n": 3, **WIDE, "seed": 1},
        "penalties": {"frequency_penalty": 1.0, "presence_penalty": 1.0, "repetition_penalty": 1.3},
        "top-k": {"top_k": 1},
        "min-tokens": {"min_tokens": 1},
        "logprobs": {"logprobs": 2},
        "bias": {"logit_bias": {"0": -100}},
        "stop": {"stop": ["\u2603"]},
    }
)
async def works_together_with(api: Api, fields: dict[str, Any]) -> None:
    form, pattern = _OTHERS["regex"]
    answer = await api.complete(**_free(structured_outputs=form, **fields))
    for choice in answer["choices"]:
        _matches(choice["text"], choice["finish_reason"], pattern)


@group.case()
async def other_requests_are_not_constrained(api: Api) -> None:
    free = (await api.complete())["choices"][0]["text"]
    await api.complete(**_free(structured_outputs={"choice": ["yes", "no"]}))
    equal((await api.complete())["choices"][0]["text"], free, "text")


_WRONG: dict[str, dict[str, Any]] = {
    "a-broken-regex": {"structured_outputs": {"regex": "[a-"}},
    "a-broken-grammar": {"structured_outputs": {"grammar": "root ::= ???"}},
    "no-choices": {"structured_outputs": {"choice": []}},
    "choices-that-are-numbers": {"structured_outputs": {"choice": [1, 2]}},
    "two-forms-at-once": {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    "a-schema-that-is-a-number": {"structured_outputs": {"json": 5}},
    "a-schema-of-an-unknown-type": {"structured_outputs": {"json": {"type": "colour"}}},
    "a-schema-with-a-broken-reference": {
        "structured_outputs": {"json": {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}}
    },
    "an-unknown-response-format": {"response_format": {"type": "xml"}},
    "a-json-schema-without-a-schema": {"response_format": {"type": "json_schema"}},
}


@group.each(_WRONG)
async def refuses(api: Api, fields: dict[str, Any]) -> None:
    await api.refused(await api.post(COMPLETIONS, api.completion_body(**_free(**fields))))


@group.each(_WRONG, Need.CHAT)
async def names_the_refused_field_in_a_chat(api: Api, fields: dict[str, Any]) -> None:
    error = await api.refused(await api.post(CHAT, api.chat_body(**_free(**fields))))
    name = next(iter(fields))
    check(str(error["param"]).startswith(name), f"param {error['param']!r}, expected {name!r}")
