"""Tools with a format for the answer: the model calls a tool, or answers in the format."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.server.generation.constraints import find_spec
from engine.server.protocol.body_reader import check
from engine.server.protocol.chat_body import ChatBody
from engine.structured import StructuredKind
from engine.text.parsers.choice import named_format
from engine.text.parsers.hermes import HERMES
from engine.text.parsers.tools import TOOL_FORMATS
from tests.engine.structured.walking import Walker

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER = {"type": "object", "properties": {"degrees": {"type": "integer"}}, "required": ["degrees"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
CALLS = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"city": "Oslo"}}\n</tool_call>',
    "qwen3_coder": (
        "<tool_call>\n<function=f>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
    ),
    "llama3_json": '{"name": "f", "parameters": {"city": "Oslo"}}',
    "mistral": '[{"name": "f", "arguments": {"city": "Oslo"}}]',
}
WRONG_CALLS = {name: call.replace("city", "town") for name, call in CALLS.items()}


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


def body(**fields: Any) -> ChatBody:
    tool = {"type": "function", "function": {"name": "f", "parameters": CITY, **fields.pop("function", {})}}
    return check({"messages": [{"role": "user", "content": "Hi"}], "tools": [tool], **fields}, ChatBody)


async def takes(walker: Walker, chat: ChatBody, parser: str, *texts: str) -> list[bool]:
    spec = find_spec(chat, named_format(TOOL_FORMATS, parser))
    assert spec is not None
    compiled = await walker.grammar_compiler.compile(spec)
    return [walker.takes(compiled, text) for text in texts]


@pytest.mark.parametrize("parser", CALLS)
async def test_a_model_calls_a_tool_or_answers_in_the_format(walker: Walker, parser: str) -> None:
    texts = ('{"degrees": 12}', CALLS[parser], WRONG_CALLS[parser], '{"degrees": "warm"}', "It is warm.")
    chat = body(response_format=FORMAT)
    assert await takes(walker, chat, parser, *texts) == [True, True, True, False, False]
    strict = body(response_format=FORMAT, function={"strict": True})
    assert await takes(walker, strict, parser, *texts) == [True, True, False, False, False]


async def test_any_object_is_the_answer_of_a_json_object(walker: Walker) -> None:
    chat = body(response_format={"type": "json_object"})
    assert await takes(walker, chat, "hermes", '{"a": [1]}', CALLS["hermes"], "a") == [True, True, False]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
async def test_a_forced_call_comes_before_the_format(walker: Walker, choice: Any) -> None:
    chat = body(response_format=FORMAT, tool_choice=choice)
    assert await takes(walker, chat, "hermes", '{"degrees": 12}', CALLS["hermes"]) == [False, True]


def test_structured_outputs_exclude_tool_calls() -> None:
    spec = find_spec(body(structured_outputs={"regex": "a+"}), HERMES)
    assert spec is not None
    assert spec.kind is StructuredKind.REGEX
    with pytest.raises(InvalidRequest, match="structured_outputs"):
        find_spec(body(structured_outputs={"regex": "a+"}, tool_choice="required"), HERMES)


def test_without_tools_the_format_is_the_answers(walker: Walker) -> None:
    spec = find_spec(body(response_format=FORMAT, tool_choice="none"), None)
    assert spec is not None
    assert spec.kind is StructuredKind.JSON_SCHEMA
