"""An error's `param` is the path in the client's body, without names of union variants."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.server.messages.bodies import MessagesBody
from engine.server.openai.responses.bodies import ResponsesBody
from engine.server.protocol.body_reader import check
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.request_body import Strict
from engine.server.protocol.unknown_fields import collect_ignored

HI = {"role": "user", "content": "Hi"}
SCHEMA = {"name": "x", "schema": {}}


def _chat(**fields: Any) -> tuple[type[Strict], dict[str, Any]]:
    return ChatBody, {"messages": [HI], **fields}


def _output(*parts: Any) -> tuple[type[Strict], dict[str, Any]]:
    item = {"type": "function_call_output", "call_id": "c", "output": list(parts)}
    return ResponsesBody, {"input": [item]}


def _tools(*tools: Any) -> tuple[type[Strict], dict[str, Any]]:
    return ResponsesBody, {"input": "Hi", "tools": list(tools)}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (_chat(messages=[HI, {"role": "tool", "content": {"t": 12}}]), "messages[1].content"),
        (_chat(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (_chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
        (
            _chat(response_format={"type": "json_schema", "json_schema": {"schema": {}}}),
            "response_format.json_schema.name",
        ),
        (
            _chat(response_format={"type": "json_schema", "json_schema": SCHEMA, "mood": 1}),
            "response_format.mood",
        ),
        (_chat(tool_choice={"type": "function", "name": "x"}), "tool_choice.function"),
        (_output({"type": "input_text", "text": 5}), "input[0].output[0].text"),
        (_output({"type": "input_text", "text": "a", "mood": 1}), "input[0].output[0].mood"),
        (_output({"type": "text"}), "input[0].output[0].text"),
        (_tools({"type": "function", "function": {"name": "x"}}), "tools[0].name"),
        (
            (
                MessagesBody,
                {"max_tokens": 1, "messages": [HI], "system": [{"type": "text", "text": "", "a": 1}]},
            ),
            "system[0].a",
        ),
    ],
)
def test_an_error_names_the_path_in_the_body(asked: tuple[type[Strict], dict[str, Any]], param: str) -> None:
    model, body = asked
    collect_ignored(refuses_unknown=True)
    with pytest.raises(InvalidRequest) as refused:
        check(body, model)
    assert refused.value.param == param
