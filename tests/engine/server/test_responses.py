"""/v1/responses with the official `openai` client and a model with tools and reasoning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.engine.server.serving import Running

MODEL = "fake"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(demo_server: Running) -> Iterator[openai.OpenAI]:
    with demo_server.openai() as client:
        yield client


def test_a_conversation_can_be_continued(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="What is Berth?", temperature=0)
    assert first.status == "completed" and "port" in first.output_text
    assert first.usage is not None and first.usage.total_tokens == (
        first.usage.input_tokens + first.usage.output_tokens
    )
    second = client.responses.create(
        model=MODEL, input="And you?", previous_response_id=first.id, max_output_tokens=4, temperature=0
    )
    assert second.usage is not None and second.usage.input_tokens > first.usage.total_tokens
    assert second.status == "incomplete"
    assert second.incomplete_details is not None and second.incomplete_details.reason == "max_output_tokens"


def test_a_stream_adds_up_to_the_response(client: openai.OpenAI) -> None:
    text, numbers = "", []
    with client.responses.stream(model=MODEL, input="What is Berth?", temperature=0) as stream:
        for event in stream:
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                text += event.delta
        final = stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert text == final.output_text == client.responses.retrieve(final.id).output_text
    whole = client.responses.create(model=MODEL, input="What is Berth?", temperature=0)
    assert whole.output_text == text


def test_a_tool_is_called_and_its_result_sent_back(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=MODEL, input="What is the weather in Oslo?", temperature=0, tools=[WEATHER]
    ) as stream:
        fragments = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    [call] = final.output
    assert call.type == "function_call" and call.name == "get_weather"
    assert "".join(fragments) == call.arguments
    assert json.loads(call.arguments) == {"city": "Oslo"}
    result = json.dumps({"temperature": 12, "sky": "cloudy"})
    answer = client.responses.create(
        model=MODEL,
        previous_response_id=final.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": result}],
        tools=[WEATHER],
        temperature=0,
    )
    assert "12" in answer.output_text


def test_reasoning_is_a_separate_item(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL, input="What is 12 + 30?", temperature=0, reasoning={"effort": "high"}
    )
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert "42" in answer.output_text
    assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens > 0


def test_an_answer_follows_a_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "name": "weather", "schema": WEATHER["parameters"]}
    answer = client.responses.create(
        model=MODEL, input="Oslo", text={"format": form}, max_output_tokens=300, temperature=0
    )
    assert isinstance(json.loads(answer.output_text)["city"], str)


def test_the_background(client: openai.OpenAI, demo_server: Running) -> None:
    endless: Any = {"extra_body": {"ignore_eos": True}}
    begun = client.responses.create(model=MODEL, input="Go on.", background=True, **endless)
    assert begun.status == "in_progress"
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert client.responses.retrieve(begun.id).status == "cancelled"
    client.responses.delete(begun.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)
    demo_server.wait_idle()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "input_text", "text": "Hi"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": "a"}, {"type": "reasoning", "summary": 1}]},
            "input[1].summary",
        ),
        ({"input": []}, "input"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": [WEATHER]}, "tool_choice.name"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
            "text.format.schema.not",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_k": -2}, "top_k"),
        ({"truncation": "middle"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"background": True, "store": False}, "background"),
        ({"background": True, "stream": True}, "background"),
        ({"conversation": "c"}, "conversation"),
    ],
)
def test_an_invalid_field_is_named(demo_server: Running, fields: dict[str, Any], param: str) -> None:
    with demo_server.http() as http:
        answer = http.post("/v1/responses", json={"input": "Hi", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]
