"""/v1/messages with the official `anthropic` client and a model with tools and reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.engine.server.serving import WAIT_S, Running

MODEL = "fake"
GREEDY: Any = {"extra_body": {"temperature": 0}}
WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
SEARCH: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
CHOOSE_SEARCH: Any = {"type": "tool", "name": "web_search"}
TEXT_OF_FIRST = "messages[0].content[0].text"
WRONG_FORMAT: Any = {"type": "json_schema", "schema": {"type": "no such type"}}


def user_messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(demo_server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=demo_server.url, api_key="none", max_retries=0, timeout=WAIT_S
    ) as client:
        yield client


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=80, messages=user_messages("What is Berth?"), system="Be brief.", **GREEDY
    )
    [block] = message.content
    assert block.type == "text" and "port" in block.text
    assert message.stop_reason == "end_turn"
    counted = client.messages.count_tokens(
        model=MODEL, messages=user_messages("What is Berth?"), system="Be brief."
    )
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_stream_adds_up_to_the_message(client: anthropic.Anthropic) -> None:
    arguments: Any = {"model": MODEL, "max_tokens": 12, "messages": user_messages("What is Berth?"), **GREEDY}
    whole = client.messages.create(**arguments)
    with client.messages.stream(**arguments) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [b.model_dump() for b in whole.content]
    assert text == final.content[0].text  # type: ignore[union-attr]
    assert final.stop_reason == whole.stop_reason == "max_tokens"
    assert final.usage.output_tokens == whole.usage.output_tokens == 12


def test_a_stop_sequence_is_returned(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=80,
        messages=user_messages("What is Berth?"),
        stop_sequences=[*(f"\n\nSpeaker {number}:" for number in range(20)), "port"],
        **GREEDY,
    )
    assert message.stop_reason == "stop_sequence" and message.stop_sequence == "port"


@pytest.mark.parametrize("choice", [None, {"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used_and_its_result_sent_back(client: anthropic.Anthropic, choice: Any) -> None:
    arguments: Any = {"model": MODEL, "max_tokens": 100, "tools": [WEATHER], **GREEDY}
    chosen = {} if choice is None else {"tool_choice": choice}
    question = user_messages("What is the weather in Oslo?")
    with client.messages.stream(messages=question, **chosen, **arguments) as stream:
        message = stream.get_final_message()
    [use] = [block for block in message.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("get_weather", {"city": "Oslo"})
    assert message.stop_reason == "tool_use"
    result: Any = {
        "type": "tool_result",
        "tool_use_id": use.id,
        "content": '{"temperature": 12, "sky": "cloudy"}',
    }
    call_turn: Any = {
        "role": "assistant",
        "content": [use.model_dump(include={"type", "id", "name", "input"})],
    }
    answer = client.messages.create(
        messages=[*question, call_turn, {"role": "user", "content": [result]}], **arguments
    )
    assert "12" in answer.content[0].text


def test_reasoning_is_a_separate_block(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL,
        max_tokens=200,
        messages=user_messages("What is 12 + 30?"),
        thinking={"type": "enabled", "budget_tokens": 1024},
        **GREEDY,
    ) as stream:
        message = stream.get_final_message()
    reasoning, answer = message.content
    assert reasoning.type == "thinking" and reasoning.thinking
    assert answer.type == "text" and "42" in answer.text


def test_a_started_answer_is_continued(client: anthropic.Anthropic) -> None:
    prefilled: Any = [*user_messages("What is Berth?"), {"role": "assistant", "content": "Berth gives every"}]
    message = client.messages.create(model=MODEL, max_tokens=8, messages=prefilled, **GREEDY)
    assert message.content[0].text.startswith(" LLM engine")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, TEXT_OF_FIRST),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"system": [{"type": "text"}]}, "system[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
            "messages[0].content[0].type",
        ),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": ["a"] * 257}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name"),
        ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER, SEARCH], "tool_choice": CHOOSE_SEARCH}, "tool_choice.name"),
        ({"tools": [SEARCH, {"name": "f"}]}, "tools[1].input_schema"),
        ({"tools": [SEARCH, {**WEATHER, "input_schema": 5}]}, "tools[1].input_schema"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": WRONG_FORMAT}}, "output_config.format.schema.type"),
        ({"output_format": WRONG_FORMAT}, "output_format.schema.type"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"thread": {"type": "fork"}}, "thread.type"),
    ],
)
def test_an_invalid_field_is_named(demo_server: Running, fields: dict[str, Any], param: str) -> None:
    with demo_server.http() as http:
        body = {"max_tokens": 5, "messages": user_messages("Hi"), **fields}
        answer = http.post("/v1/messages", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "error"
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_continued_thread_is_asked_for_as_a_whole(demo_server: Running, path: str) -> None:
    """As Anthropic's SDKs expect: they send the whole conversation again."""
    body = {"max_tokens": 1, "messages": user_messages("Hi")}
    with demo_server.http() as http:
        new = http.post(path, json={**body, "thread": {"type": "create"}})
        answer = http.post(
            path, json={**body, "thread": {"type": "continue", "previous_message_id": "msg_1"}}
        )
    assert new.status_code == 200, new.text
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (404, "not_found_error")
    assert error["details"] == {"error_code": "thread_not_found"}
    assert "'msg_1'" in error["message"]


def test_errors_of_every_layer_have_the_protocols_format(demo_server: Running) -> None:
    with demo_server.http() as http:
        unknown = http.post(
            "/v1/messages", json={"model": "x", "max_tokens": 5, "messages": user_messages("Hi")}
        )
        wrong_method = http.get("/v1/messages")
        no_json = http.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    assert (wrong_method.status_code, wrong_method.json()["type"]) == (405, "error")
    assert (no_json.status_code, no_json.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_request_id_is_in_the_header_that_clients_read(
    client: anthropic.Anthropic, demo_server: Running
) -> None:
    message = client.messages.create(model=MODEL, max_tokens=2, messages=user_messages("Hi"), **GREEDY)
    assert message._request_id
    assert message.id == f"msg_{message._request_id}"
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.messages.create(model="x", max_tokens=2, messages=user_messages("Hi"))
    assert refused.value.request_id
    assert refused.value.body == {**refused.value.response.json(), "request_id": refused.value.request_id}
    with demo_server.http() as http:
        assert "request-id" not in http.get("/v1/models").headers


def test_max_tokens_0_reads_the_prompt_into_the_cache(client: anthropic.Anthropic) -> None:
    arguments: Any = {"model": MODEL, "messages": user_messages("A prompt of some length, asked twice. " * 9)}
    message = client.messages.create(max_tokens=0, **arguments)
    assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "max_tokens", 0)
    with client.messages.stream(max_tokens=0, **arguments) as stream:
        streamed = stream.get_final_message()
    assert (streamed.content, streamed.stop_reason) == ([], "max_tokens")
    assert streamed.usage.output_tokens == 0
    assert (streamed.usage.cache_read_input_tokens or 0) > 0
