"""Anthropic's Messages API with an engine that speaks chats alone: real processes, the real SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.api.test_gateway import berth_with
from tests.berth_process import BerthProcess
from tests.chat_engine import command
from tests.engine.server.claude_code import ASKED, ELSEWHERE, HEADERS, TOOLS, request_of

ASK: dict[str, Any] = {"model": "teller", "max_tokens": 20}


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    models = {"teller": {"command": command(), "aliases": ["claude-sonnet-4-5"]}}
    with berth_with(tmp_path_factory.mktemp("messages"), models) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="none", base_url=berth.url, max_retries=0, timeout=30) as client:
        yield client


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


def seen(berth: BerthProcess) -> dict[str, Any]:
    """The last chat that the engine got."""
    with berth.client() as client:
        [instance] = client.get("/instances").json()["data"]
        found: dict[str, Any] = client.get(f"/proxy/{instance['instance_id']}/v1/seen").json()
    return found


def test_a_message_is_a_chat_for_the_engine(client: anthropic.Anthropic, berth: BerthProcess) -> None:
    got = client.messages.create(
        **ASK,
        messages=say("Hello there"),
        system="Be kind.",
        stop_sequences=["END"],
        extra_body={"temperature": 0.5},
    )
    assert [block.text for block in got.content] == [" Hello there"]
    assert (got.type, got.role, got.model, got.stop_reason) == ("message", "assistant", "teller", "end_turn")
    usage = got.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (6, 5, 4)
    assert got.id.startswith("msg_") and got._request_id
    body = seen(berth)["body"]
    assert body["messages"] == [{"role": "system", "content": "Be kind."}, *say("Hello there")]
    assert (body["max_tokens"], body["stop"], body["temperature"]) == (20, ["END"], 0.5)
    assert seen(berth)["headers"]["content-type"] == "application/json"


def test_a_continued_thread_is_asked_for_as_a_whole(client: anthropic.Anthropic) -> None:
    """As Anthropic's SDKs expect: they send the whole conversation again."""
    started = {"thread": {"type": "create"}}
    assert client.messages.create(**ASK, messages=say("Hello"), extra_body=started).content
    continued = {"thread": {"type": "continue", "previous_message_id": "msg_1"}}
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**ASK, messages=say("Hello"), extra_body=continued)
    error: Any = caught.value.body
    assert error["error"]["details"] == {"error_code": "thread_not_found"}


@pytest.mark.parametrize("order", ["Hello there", "bytes", "no-done", "no-reason"])
def test_a_stream_has_anthropics_events_in_order(client: anthropic.Anthropic, order: str) -> None:
    with client.messages.stream(**ASK, messages=say(order)) as stream:
        kinds = [event.type for event in stream if event.type != "text"]
        got = stream.get_final_message()
    words = 2 if order == "Hello there" else 3
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * words,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert got.content[0].text == (" Hello there" if words == 2 else " It is här.")  # type: ignore[union-attr]
    assert (got.stop_reason, got.usage.output_tokens, got.usage.input_tokens) == ("end_turn", 4, 6)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("order", ["think", "think-other"])
def test_reasoning_is_a_signed_block(client: anthropic.Anthropic, order: str, is_streamed: bool) -> None:
    got = ask(client, order, is_streamed, thinking={"type": "adaptive"})
    thinking, text = got.content
    assert (thinking.type, thinking.thinking, bool(thinking.signature)) == ("thinking", "Hmm.", True)
    assert text.text == " It is här."


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("order", ["call", "call-stop"])
def test_parallel_calls_are_blocks_of_their_own(
    client: anthropic.Anthropic, order: str, is_streamed: bool
) -> None:
    got = ask(client, order, is_streamed, tools=[tool("weather"), tool("clock")])
    assert [(block.type, block.id, block.name, block.input) for block in got.content] == [
        ("tool_use", "call_1", "weather", {"city": "Oslo"}),
        ("tool_use", "call_2", "clock", {}),
    ]
    assert got.stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("order", "reason", "stop"),
    [
        ("length", "model_context_window_exceeded", None),  # 4 of 20 tokens
        ("stopped", "stop_sequence", "END"),
        ("no-usage", "end_turn", None),
    ],
)
def test_the_reason_of_the_end(
    client: anthropic.Anthropic, order: str, reason: str, stop: str | None
) -> None:
    for is_streamed in (False, True):
        got = ask(client, order, is_streamed)
        assert (got.stop_reason, got.stop_sequence) == (reason, stop)


def test_a_whole_conversation_with_tools_and_images(client: anthropic.Anthropic, berth: BerthProcess) -> None:
    png = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
    cached = {"type": "ephemeral"}
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": cached}, png]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": "x"},
                {"type": "redacted_thinking", "data": "y"},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "c2", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "go on"},
                {"type": "tool_result", "tool_use_id": "c2", "content": "late", "is_error": True},
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [{"type": "text", "text": "fog"}, png],
                },
            ],
        },
    ]
    system: Any = [{"type": "text", "text": "one", "cache_control": cached}, {"type": "text", "text": "two"}]
    client.messages.create(
        **ASK,
        messages=turns,
        system=system,
        tools=[tool("weather"), tool("clock")],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        metadata={"user_id": "me"},
    )
    body = seen(berth)["body"]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}
    calls = [("c1", "weather", '{"city": "Oslo"}'), ("c2", "clock", "{}")]
    assert body["messages"] == [
        {"role": "system", "content": "one\ntwo"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, image]},
        {
            "role": "assistant",
            "reasoning_content": "I look.",
            "content": "b",
            "tool_calls": [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id_, name, arguments in calls
            ],
        },
        {"role": "tool", "content": "Error: late", "tool_call_id": "c2"},
        {"role": "tool", "content": "fog", "tool_call_id": "c1"},
        {"role": "user", "content": [image, {"type": "text", "text": "go on"}]},
    ]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert body["tools"][0] == {
        "type": "function",
        "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
    }
    assert "metadata" not in body


def test_tokens_are_counted_by_the_engine(client: anthropic.Anthropic, berth: BerthProcess) -> None:
    counted = client.messages.count_tokens(
        model="claude-sonnet-4-5", messages=say("a"), tools=[tool("clock")]
    )
    assert counted.input_tokens == 11
    body = seen(berth)["body"]
    assert (body["max_tokens"], body["stream"], len(body["tools"])) == (1, False, 1)


def test_the_engine_is_asked_once_what_it_speaks(client: anthropic.Anthropic, berth: BerthProcess) -> None:
    for _ in range(3):
        client.messages.create(**ASK, messages=say("a"))
    assert seen(berth)["refused"].count("/v1/messages") == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": {}}] * 2}, "tools[1].name"),
        ({"tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "loud"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"thread": "t"}, "thread"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_what_can_not_be_translated_is_refused_by_name(
    berth: BerthProcess, fields: dict[str, Any], named: str
) -> None:
    with berth.client() as http:
        got = http.post("/v1/messages", json={**ASK, "messages": say("a"), **fields})
    error = got.json()
    assert (got.status_code, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert error["error"]["message"].startswith(f"{named}: ")
    assert error["request_id"] == got.headers["request-id"] == got.headers["x-request-id"]


def test_hints_and_marks_are_accepted_and_unknown_fields_named(berth: BerthProcess) -> None:
    hints = {
        "service_tier": "auto", "inference_geo": "eu", "cache_control": {"type": "ephemeral"}, "mood": "good",
        "container": "c", "thinking": {"type": "enabled", "budget_tokens": 2048},
        "chat_template_kwargs": {"a": 1},
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
        "output_config": {"effort": "xhigh"},
    }  # fmt: skip
    with berth.client() as http:
        got = http.post("/v1/messages?beta=true", json={**ASK, "messages": say("a"), **hints})
    assert got.status_code == 200
    warning = got.headers["warning"]
    for name in (
        "mood (unknown field)",
        "container (",
        "tools[0] (a tool of type web_search",
        "budget_tokens",
    ):
        assert name in warning
    assert "service_tier" not in warning
    body = seen(berth)["body"]
    assert body["chat_template_kwargs"] == {"enable_thinking": True, "a": 1}
    assert body["reasoning_effort"] == "high"
    assert "tools" not in body and "mood" not in body


def test_an_engines_error_is_anthropics(client: anthropic.Anthropic) -> None:
    for is_streamed in (False, True):
        with pytest.raises(anthropic.APIStatusError) as caught:
            ask(client, "refuse", is_streamed)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.body == {
            "type": "error",
            "error": {"type": "overloaded_error", "message": "too many requests"},
            "request_id": caught.value.request_id,
        }


@pytest.mark.parametrize("order", ["error", "cut", "unfinished"])
def test_a_broken_stream_ends_with_an_error_and_never_cleanly(berth: BerthProcess, order: str) -> None:
    body = {**ASK, "messages": say(order), "stream": True}
    received = b""
    with berth.client() as http, http.stream("POST", "/v1/messages", json=body) as got:
        assert got.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            for piece in got.iter_raw():
                received += piece
    name, _, data = received.decode().strip().split("\n\n")[-1].partition("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert "message_stop" not in received.decode()


def test_claude_code(berth: BerthProcess) -> None:
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Port 81."}]}
    turns = [*ELSEWHERE, ASKED, answer, {"role": "user", "content": "call"}]
    body = request_of(3, turns, stream=True, model="claude-sonnet-4-5")
    with berth.client() as http:
        got = http.post("/v1/messages?beta=true", json=body, headers=HEADERS)
        counted = http.post(
            "/v1/messages/count_tokens?beta=true",
            json={name: body[name] for name in ("model", "messages", "system", "tools")},
            headers=HEADERS,
        )
    assert got.status_code == 200 and "event: message_stop" in got.text
    assert got.text.count('"type":"tool_use"') == 2
    assert counted.json() == {"input_tokens": 11}
    chat = seen(berth)["body"]
    assert not any("billing" in json.dumps(message) for message in chat["messages"])
    assert [each["role"] for each in chat["messages"]][:3] == ["system", "user", "assistant"]
    assert "web_search" in got.headers["warning"]
    assert len(chat["tools"]) == len(TOOLS) - 1
    assert all(each["function"]["parameters"]["type"] == "object" for each in chat["tools"])
    calls = [call["id"] for each in chat["messages"] for call in each.get("tool_calls", [])]
    results = [each["tool_call_id"] for each in chat["messages"] if each["role"] == "tool"]
    assert set(results) <= set(calls)


def tool(name: str) -> Any:
    return {"name": name, "description": "Tells it.", "input_schema": {"type": "object"}}


def ask(client: anthropic.Anthropic, order: str, is_streamed: bool, **fields: Any) -> Any:
    if not is_streamed:
        return client.messages.create(**ASK, messages=say(order), **fields)
    with client.messages.stream(**ASK, messages=say(order), **fields) as stream:
        return stream.get_final_message()
