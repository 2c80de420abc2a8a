"""Schemas in requests: the paths in errors, and tools with unenforceable schemas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.server.in_process import CHAT, App, app_in_process

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"tags": ["a", "a"], "n": 3}}\n</tool_call>'
TAGS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}  # which no grammar can express
SCHEMA = {"type": "object", "properties": {"tags": TAGS, "n": {"type": "integer"}}, "required": ["tags", "n"]}
NAMED = {"type": "function", "function": {"name": "f"}}
PLAIN = {"name": "plain", "parameters": {"type": "object", "properties": {}}}


def function(schema: Any, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def flat(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": "f", "parameters": schema, **more}


def form(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model, tool_call_parser="hermes") as app:
        yield app


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"response_format": form(SCHEMA)}, "response_format.json_schema.schema.properties.tags"),
        (CHAT, {"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json.properties.tags"),
        (
            CHAT,
            {"tools": [function({}, "g"), function(SCHEMA)], "tool_choice": "required"},
            "tools[1].function.parameters.properties.tags",
        ),
        (CHAT, {"tools": [function(SCHEMA, strict=True)]}, "tools[0].function.parameters.properties.tags"),
        (
            CHAT,
            {
                "tools": [function({"$ref": "#/$defs/A", "$defs": {"A": SCHEMA}}, strict=True)],
            },
            "tools[0].function.parameters.$defs.A.properties.tags",
        ),
        (RESPONSES, {"tools": [flat(SCHEMA, strict=True)]}, "tools[0].parameters.properties.tags"),
        (
            RESPONSES,
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
            "text.format.schema.properties.tags",
        ),
        (
            MESSAGES,
            {"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
            "tools[0].input_schema.properties.tags",
        ),
        (  # next to ignored tools
            CHAT,
            {"tools": [{"type": "web_search"}, function(SCHEMA, strict=True)]},
            "tools[1].function.parameters.properties.tags",
        ),
        (
            CHAT,
            {
                "tools": [function({}, "g"), function(SCHEMA, strict=True)],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            },
            "tools[1].function.parameters.properties.tags",
        ),
        (  # next to a response format
            CHAT,
            {"tools": [function({})], "response_format": form(SCHEMA)},
            "response_format.json_schema.schema.properties.tags",
        ),
        (
            CHAT,
            {"tools": [function(SCHEMA, strict=True)], "response_format": {"type": "json_object"}},
            "tools[0].function.parameters.properties.tags",
        ),
    ],
)
async def test_unenforceable_keywords_are_named_by_their_path(
    app: App, path: str, fields: dict[str, Any], param: str
) -> None:
    messages = {"input": "Hi"} if path == RESPONSES else {"messages": USER, "max_tokens": 99}
    status, answer = await app.post(path, model="fake", **messages, **fields)
    error = answer["error"]
    assert status == 400, answer
    assert error["param"] == f"{param}.uniqueItems"
    assert error["message"].startswith(f"{param}: uniqueItems is supported for a few listed values")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"tools": [function({"type": "string"})], "tool_choice": "required"}, "type"),
        ({"tools": [function({"properties": []}, strict=True)]}, "properties"),
        (
            {"tools": [function({"properties": {"a": {"$ref": "#/$defs/none"}}}, strict=True)]},
            "properties.a.$ref",
        ),
        ({"tools": [function({"properties": {"a": {"type": "wat"}}}, strict=True)]}, "properties.a.type"),
        ({"tools": [function({"properties": {"a": 7}}, strict=True)]}, "properties.a"),
    ],
)
async def test_an_invalid_schema_is_named(app: App, fields: dict[str, Any], wrong: str) -> None:
    status, answer = await app.post(CHAT, messages=USER, **fields)
    assert status == 400, answer
    assert answer["error"]["param"] == f"tools[0].function.parameters.{wrong}"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [function(SCHEMA)]},
        {"tools": [function(SCHEMA), function(PLAIN["parameters"], "plain", strict=True)]},
        {"tools": [function(SCHEMA, strict=False)], "tool_choice": "required"},
        {
            "tools": [function(SCHEMA, strict=False)],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ],
    ids=["free", "beside-a-strict-one", "required", "named"],
)
async def test_an_unenforceable_tool_is_accepted_without_strict(app: App, fields: dict[str, Any]) -> None:
    app.will_say(CALL)
    answer = await app.ask(CHAT, messages=USER, **fields)
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"tags": ["a", "a"], "n": 3}'}


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        {"type": "wat"},
        {"type": "string"},
        {"properties": []},
        {"properties": {"tags": 7}},
        {"properties": {"tags": {"$ref": "#/nowhere"}}},
        {"properties": {"tags": {"$ref": "https://example.com/schema.json"}}},
        {"properties": {"tags": {"type": "array", "minItems": "two"}}},
        {"additionalProperties": {"pattern": "(?=x)"}},
    ],
    ids=str,
)
async def test_an_invalid_tool_schema_is_accepted_without_strict(app: App, schema: Any) -> None:
    app.will_say("Hello")
    tools = [function(schema), function(PLAIN["parameters"], "plain", strict=True)]
    answer = await app.ask(CHAT, messages=USER, tools=tools)
    assert answer["choices"][0]["message"]["content"] == "Hello"


async def test_the_enforceable_part_of_a_lax_tool_is_followed(app: App) -> None:
    """The model tries `true` for an integer, which the mask prevents."""
    app.will_say(CALL.replace("3", "true"))
    tools = [function(SCHEMA, strict=False)]
    status, _ = await app.post(CHAT, messages=USER, tools=tools, tool_choice="required")
    assert status == 500


async def test_a_lax_response_format_follows_the_enforceable_part(app: App) -> None:
    app.will_say('{"tags": ["a", "a"], "n": 3}')
    answer = await app.ask(CHAT, messages=USER, response_format=form(SCHEMA, strict=False))
    assert answer["choices"][0]["message"]["content"] == '{"tags": ["a", "a"], "n": 3}'
