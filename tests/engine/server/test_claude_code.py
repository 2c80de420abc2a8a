"""A session of Claude Code, with its own requests and Anthropic's client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from tests.engine.server.claude_code import (
    ASKED,
    BETAS,
    ELSEWHERE,
    EPHEMERAL,
    HEADERS,
    SCREENSHOT,
    TOOLS,
    request_of,
    system_of,
    tool,
)
from tests.engine.server.in_process import App, app_in_process
from tests.engine.server.serving import Running, write_fake_model

PATH = "/v1/messages?beta=true"
TEMPLATE = Path(__file__).resolve().parents[3] / "models" / "berth-demo" / "chat_template.jinja"
CALLS = (
    "<think>\nTwo looks.\n</think>\n\nLet me look."
    '\n<tool_call>\n{"name": "Bash", "arguments": {"command": "ss -ltn"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "Read", "arguments": {"file_path": "/etc/ports", "limit": 5}}\n</tool_call>'
)


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    directory = write_fake_model(tmp_path_factory.mktemp("model"), chat_template=TEMPLATE.read_text())
    async with app_in_process(
        directory, max_model_len=16000, tool_call_parser="hermes", reasoning_parser="qwen3"
    ) as app:
        yield app


@pytest.fixture(scope="module")
async def client(app: App) -> AsyncIterator[anthropic.AsyncAnthropic]:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app.asgi))
    async with anthropic.AsyncAnthropic(
        base_url="http://engine", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


async def answer_of(app: App, client: anthropic.AsyncAnthropic, request: dict[str, Any]) -> Any:
    """The response whole, streamed, and assembled by the client; and the ignored fields."""
    whole = await app.http.post(PATH, json=request, headers=HEADERS)
    assert whole.status_code == 200, whole.text
    assert "unknown" not in whole.headers.get("warning", "")
    extra = {name: request[name] for name in ("safeguards", "temperature") if name in request}
    typed = {name: value for name, value in request.items() if name not in extra}
    async with client.beta.messages.stream(**typed, betas=BETAS, extra_body=extra) as stream:
        kinds = [event.type async for event in stream]
        put_together = await stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    message = whole.json()
    translated = json.loads(put_together.to_json())
    assert [_without_ids(block) for block in translated["content"]] == [
        _without_ids(block) for block in message["content"]
    ]
    assert translated["stop_reason"] == message["stop_reason"]
    assert translated["usage"]["output_tokens"] == message["usage"]["output_tokens"]
    return message


def _without_ids(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "id" and value is not None}


def read_tokens(message: Any) -> int:
    return int(message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"])


async def test_the_title_of_a_session_follows_its_schema(app: App, client: anthropic.AsyncAnthropic) -> None:
    app.will_say('{"title": "Find a port"}')
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    }
    request = request_of(
        0,
        [{"role": "user", "content": [{"type": "text", "text": "Which port is free?"}]}],
        tools=[],
        thinking={"type": "disabled"},
        temperature=1,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    del request["context_management"], request["safeguards"]
    message = await answer_of(app, client, request)
    assert json.loads(message["content"][0]["text"]) == {"title": "Find a port"}
    assert message["stop_reason"] == "end_turn"


async def test_a_session_with_tools_another_providers_history_and_a_token_count(
    app: App, client: anthropic.AsyncAnthropic
) -> None:
    app.will_say(CALLS)
    first = await answer_of(app, client, request_of(1, [ASKED]))
    reasoning, text, bash, read = first["content"]
    assert (reasoning["type"], reasoning["thinking"].strip()) == ("thinking", "Two looks.")
    assert reasoning["signature"]
    assert text["text"].strip() == "Let me look."
    assert (bash["name"], bash["input"]) == ("Bash", {"command": "ss -ltn"})
    assert (read["name"], read["input"]) == ("Read", {"file_path": "/etc/ports", "limit": 5})
    assert first["stop_reason"] == "tool_use"

    results = [
        {
            "type": "tool_result",
            "tool_use_id": bash["id"],
            "content": "<tool_use_error>ss: not found</tool_use_error>",
            "is_error": True,
        },
        {
            "type": "tool_result",
            "tool_use_id": read["id"],
            "content": [SCREENSHOT],
            "cache_control": EPHEMERAL,
        },
        {"type": "text", "text": "<system-reminder>\nKeep a list of todos.\n</system-reminder>"},
    ]
    history = [
        ASKED,
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": results},
        {
            "role": "system",
            "content": [{"type": "text", "text": "<total_tokens>160000 tokens left</total_tokens>"}],
        },
    ]
    app.will_say("Port 8000 is free.")
    second = await answer_of(app, client, request_of(2, history))
    assert [block["type"] for block in second["content"]] == ["text"]
    assert second["stop_reason"] == "end_turn"
    # The billing header differs between turns, but the prompt does not.
    assert second["usage"]["cache_read_input_tokens"] > read_tokens(first) * 0.9

    history += [{"role": "assistant", "content": second["content"]}, *ELSEWHERE]
    thinking: Any = {"type": "enabled", "budget_tokens": 4000}
    third = await answer_of(app, client, request_of(3, history, thinking=thinking))
    prompt: Any = {"system": system_of(4), "messages": history, "tools": TOOLS, "thinking": thinking}
    counted = await client.beta.messages.count_tokens(model="fake", betas=BETAS, **prompt)
    assert counted.input_tokens == read_tokens(third)


async def test_ignored_fields_are_named(app: App) -> None:
    app.will_say("Port 8000.")
    answer = await app.http.post(PATH, json=request_of(1, [ASKED, *ELSEWHERE[1:]]), headers=HEADERS)
    warning = answer.headers["warning"]
    assert "tools[15] (a tool of type web_search_20250305 can't run on this server)" in warning
    assert "safeguards (this server has no safety classifier)" in warning
    assert warning.count("(") == 2


async def test_another_providers_content_is_shown_as_text(app: App) -> None:
    """The prompt is as long as with the same history in this server's own format."""
    translated = [
        {"role": "user", "content": "And this?\n[An image was here, which this model can't read.]"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I'll search. "},
                {"type": "tool_use", "id": "t", "name": "web_search", "input": {"query": "port"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": "title: Ports\nurl: https://example.org/ports",
                }
            ],
        },
        {"role": "assistant", "content": "Port 80 is taken."},
        *ELSEWHERE[2:],
    ]
    counts = []
    for messages in (ELSEWHERE, translated):
        answer = await app.http.post("/v1/messages/count_tokens", json={"messages": messages})
        counts.append(answer.json()["input_tokens"])
    assert counts[0] == counts[1]


async def test_a_full_context_is_reported(fake_model: Path) -> None:
    """Claude Code then shortens the history; a full `max_tokens` would make it retry with more."""
    async with app_in_process(fake_model, max_model_len=100) as small:
        small.will_say("a" * 100)
        for max_tokens, reason in [(99, "model_context_window_exceeded"), (5, "max_tokens")]:
            message = await small.ask("/v1/messages", max_tokens=max_tokens, messages=[ASKED])
            assert message["stop_reason"] == reason


def test_the_demo_model_completes_a_session(demo_server: Running) -> None:
    """With real tokens: Anthropic's client streams, calls a tool and continues with another model."""
    weather = tool("get_weather", "city", city={"type": "string"})
    settings: Any = {
        "max_tokens": 100,
        "tools": [weather, TOOLS[-2]],
        "system": system_of(1)[:1],
        "context_management": {"edits": []},
        "betas": BETAS,
        "extra_body": {"temperature": 0},
    }
    question: Any = {"role": "user", "content": [{"type": "text", "text": "What is the weather in Oslo?"}]}
    with anthropic.Anthropic(base_url=demo_server.url, api_key="none", max_retries=0) as client:
        with client.beta.messages.stream(model="fake", messages=[question], **settings) as stream:
            first = stream.get_final_message()
        [use] = [block for block in first.content if block.type == "tool_use"]
        assert use.input == {"city": "Oslo"}
        result: Any = {
            "type": "tool_result",
            "tool_use_id": use.id,
            "content": [{"type": "text", "text": '{"temperature": 12, "sky": "cloudy"}'}],
        }
        history: Any = [question, first, {"role": "user", "content": [result]}]
        settings["betas"] = []
        answer = client.beta.messages.create(model="other-name", messages=history, **settings)
    assert "12" in answer.content[-1].text
