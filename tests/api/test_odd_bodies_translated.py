"""Odd values anywhere in bodies and in engines' responses: refused by name or served, but never a failure.

Every value of real requests is replaced in turn, by one of each type.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from api.protocols.base import InvalidResponse, ProtocolAdapter, RequestContext, to_json
from api.protocols.chat.adapter import ChatProtocol
from api.protocols.messages.adapter import CountTokensProtocol, MessagesProtocol
from api.protocols.request_translator import RequestInvalid, read_request
from api.protocols.responses.adapter import InputTokensProtocol, ResponsesProtocol
from tests.engine.server.claude_code import ASKED, ELSEWHERE, TOOLS, request_of
from tests.engine.server.test_codex import BEGINNING, codex, message

ODD: list[Any] = [
    None,
    True,
    7,
    -1.5,
    "",
    "x",
    [],
    [None],
    [[]],
    {},
    {"type": None},
    {"type": "x", "text": 5},
]
TOOL_TURNS: list[Any] = [
    {
        "role": "assistant",
        "content": [
            {"type": "tool_use", "id": "c", "name": "n", "input": {"a": 1}},
            {"type": "thinking", "thinking": "t", "signature": "s"},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "r"}]},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "a"}},
            {"type": "document", "source": {"type": "text", "data": "d"}, "title": "t"},
        ],
    },
]
ITEMS: list[Any] = [
    {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "s"}],
        "encrypted_content": "berth1.YQ==",
    },
    {"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}"},
    {"type": "custom_tool_call", "call_id": "d", "name": "n", "input": "i"},
    {"type": "local_shell_call", "call_id": "e", "action": {"type": "exec", "command": ["ls"]}},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "u"}]},
    {"type": "tool_search_output", "call_id": "c", "tools": [{"type": "function", "name": "found"}]},
    {"type": "web_search_call", "id": "w", "action": {"query": "q"}},
    message("user", "Go on."),
]
FEW = [{**TOOLS[0], "input_examples": [{}], "strict": True}, TOOLS[-2]]
CHOICES = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "update_plan"}]}
BODIES: list[tuple[ProtocolAdapter[Any], Any]] = [
    (MessagesProtocol(), request_of(1, [*ELSEWHERE[:2], *TOOL_TURNS, ASKED], tools=FEW)),
    (
        MessagesProtocol(),
        request_of(1, TOOL_TURNS, tools=FEW, tool_choice={"type": "tool", "name": "Bash"}),
    ),
    (
        CountTokensProtocol(),
        request_of(1, [ASKED], tools=None, output_format={"type": "json_schema", "schema": {}}),
    ),
    (ResponsesProtocol(), codex([*BEGINNING, *ITEMS])),
    (
        ResponsesProtocol(),
        codex([], input="a", tool_choice=CHOICES, text={"format": {"type": "json_object"}}),
    ),
    (InputTokensProtocol(), {"model": "m", "input": ITEMS}),
    (
        ChatProtocol(),
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    ),
]


def with_odd_values(value: Any) -> Iterator[Any]:
    """Copies in which one value is replaced; of long lists only the first entries."""
    if isinstance(value, dict):
        for name, inner in value.items():
            for odd in [*ODD, *with_odd_values(inner)]:
                yield {**value, name: odd}
    elif isinstance(value, list):
        for number, inner in enumerate(value[:12]):
            for odd in [*ODD, *with_odd_values(inner)]:
                yield [*value[:number], odd, *value[number + 1 :]]


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_an_odd_request_never_fails(number: int) -> None:
    adapter, body = BODIES[number]
    read_request(adapter.for_request(RequestContext()), json.dumps(body).encode(), "m")
    num_served = 0
    for odd in with_odd_values(body):
        try:
            read = read_request(adapter.for_request(RequestContext()), json.dumps(odd).encode(), "m")
        except RequestInvalid as invalid:
            assert invalid.error.status < 500, odd
        else:
            num_served += 1
            assert isinstance(json.loads(read.body), dict)
    assert num_served > 5


CHUNK: dict[str, Any] = {
    "id": "c",
    "model": "m",
    "choices": [
        {
            "index": 0,
            "delta": {
                "role": "assistant",
                "content": "a",
                "reasoning_content": "b",
                "tool_calls": [{"index": 0, "id": "i", "function": {"name": "n", "arguments": "{}"}}],
            },
            "finish_reason": "stop",
            "stop_reason": "x",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}


@pytest.mark.parametrize("adapter", [MessagesProtocol(), ResponsesProtocol()], ids=lambda one: one.name)
def test_an_odd_response_is_translated_or_invalid(adapter: ProtocolAdapter[Any]) -> None:
    say = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
    fields = say if adapter.name == "messages" else {"input": "a", "store": False}
    raw = json.dumps({"model": "m", "stream": True, **fields}).encode()
    whole = copy.deepcopy(CHUNK)
    whole["choices"][0]["message"] = whole["choices"][0].pop("delta")
    for answer, is_chunk in [(CHUNK, True), (whole, False)]:
        for odd in with_odd_values(answer):
            one = adapter.for_request(RequestContext())
            read = read_request(one, raw, "m")
            try:
                if is_chunk and read.translator is not None:
                    read.translator.event(odd)
                    read.translator.end()
                else:
                    to_json(one.from_openai(odd, read.request))
            except InvalidResponse:
                pass
