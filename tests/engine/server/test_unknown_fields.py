"""Hints, unknown fields and histories of other servers are accepted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine.server.protocol import unknown_fields
from tests.engine.server.in_process import CHAT, COMPLETIONS, App, app_in_process

HI = [{"role": "user", "content": "Hi"}]
CALL: dict[str, Any] = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at": 1}'},
}


@pytest.fixture
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        app.will_say("Hello")
        yield app


async def warning_of(app: App, path: str, **body: Any) -> str | None:
    """The warning of a response, which must equal the response without the fields."""
    response = await app.http.post(path, json=body)
    assert response.status_code == 200, response.text
    warning = response.headers.get("warning")
    return None if warning is None else str(warning)


@pytest.mark.parametrize(
    "field",
    [
        {"store": True},
        {"metadata": {"trace": "1"}},
        {"prediction": {"type": "content", "content": "x"}},
        {"verbosity": "low"},
        {"service_tier": "flex"},
        {"service_tier": "priority"},
        {"prompt_cache_retention": "24h"},
        {"prompt_cache_key": "k"},
        {"prompt_cache_key": ["k"]},
        {"user": 5},
        {"user": {"id": "u"}},
        {"safety_identifier": 5},
        {"session_id": "s"},
        {"length_penalty": 0.8},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
)
async def test_a_hint_is_accepted_silently(app: App, field: dict[str, Any]) -> None:
    assert await warning_of(app, CHAT, messages=HI, **field) is None


@pytest.mark.parametrize(
    "field",
    [
        {"cache_prompt": True},
        {"num_ctx": 4096},
        {"repeat_penalty": 1.1},
        {"mirostat": 2},
        {"chat_id": "x"},
        {"options": {"num_ctx": 4096}},
        {"extra_body": {}},
        {"temprature": 1},
    ],
)
@pytest.mark.parametrize(("path", "given"), [(CHAT, {"messages": HI}), (COMPLETIONS, {"prompt": "a"})])
async def test_an_unknown_field_is_answered_and_named_in_a_warning(
    app: App, path: str, given: dict[str, Any], field: dict[str, Any]
) -> None:
    [name] = field
    assert await warning_of(app, path, **given, **field) == f'299 berth "ignored: {name} (unknown field)"'


async def test_an_unknown_field_is_logged_once(
    app: App, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_fields, "_logged", set())
    for _ in range(3):
        await app.ask(CHAT, messages=HI, num_ctx=1, top_a=1)
    messages = [record.getMessage() for record in caplog.records if "Ignored" in record.getMessage()]
    assert [message.split("'")[1] for message in messages] == ["num_ctx", "top_a"]


async def test_nested_unknown_fields_are_named_by_path_once(app: App) -> None:
    messages = [{**HI[0], "mood": 1}, {"role": "assistant", "content": "a"}, {**HI[0], "mood": 2}]
    tools = [{"type": "function", "function": {"name": "f", "mood": 3, "parameters": {"mood": 4}}}]
    warning = await warning_of(
        app, CHAT, messages=messages, tools=tools, stream=True, stream_options={"x": 1}
    )
    assert warning is not None
    assert warning.removeprefix('299 berth "ignored: ').removesuffix('"').split(", ") == [
        "messages[].mood (unknown field)",
        "tools[].function.mood (unknown field)",
        "stream_options.x (unknown field)",
    ]


async def test_a_warning_is_a_header_whatever_the_field_is_called(app: App) -> None:
    names = {'"\\\r\nX: y': 1, "Ж" * 500: 2, **{f"f{number}": 3 for number in range(100)}}
    warning = await warning_of(app, CHAT, messages=HI, **names)
    assert warning is not None
    assert warning.isascii()
    assert len(warning) < 2000
    assert "more" in warning


async def test_an_invalid_value_is_an_error_next_to_unknown_fields(app: App) -> None:
    status, answer = await app.post(CHAT, messages=HI, num_ctx=1, temperature="hot")
    assert (status, answer["error"]["param"]) == (400, "temperature")


async def test_a_field_that_would_change_the_answer_is_refused(app: App) -> None:
    for name, value in [
        ("guided_json", {}),
        ("functions", [{"name": "f"}]),
        ("early_stopping", True),
        ("modalities", ["text", "audio"]),
        ("watermarking", True),
    ]:
        status, answer = await app.post(CHAT, messages=HI, **{name: value})
        assert (status, answer["error"]["param"]) == (400, name)


async def test_unknown_fields_can_be_refused(fake_model: Path) -> None:
    async with app_in_process(fake_model, unknown_fields="refuse") as app:
        mistakes: list[tuple[dict[str, Any], str]] = [
            ({"temprature": 1}, "temprature"),
            ({"messages": [{**HI[0], "mood": 1}]}, "messages[0].mood"),
            ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ]
        for fields, param in mistakes:
            status, answer = await app.post(CHAT, **{"messages": HI, **fields})
            assert (status, answer["error"]["param"]) == (400, param)
            assert "nknown field" in answer["error"]["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "a", "annotations": [], "audio": None, "refusal": None},
        {"role": "assistant", "content": "a", "audio": {"id": "audio_1"}, "function_call": None},
        {"role": "assistant", "content": "a", "id": "m1", "metadata": {}, "provider_specific_fields": {}},
        {"role": "assistant", "content": "a", "reasoning_details": [{"type": "reasoning.encrypted"}]},
        {"role": "assistant", "content": "a", "thinking_blocks": [{"type": "thinking"}], "parsed": None},
        {"role": "assistant", "content": [{"type": "text", "text": "a", "cache_control": {"type": "e"}}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "a"}]},
        {"role": "assistant", "content": None, "refusal": "a"},
        {"role": "assistant", "content": "a", "tool_calls": None},
    ],
)
async def test_a_message_is_read_as_an_sdk_dumps_it(app: App, message: dict[str, Any]) -> None:
    plain = {"role": "assistant", "content": "a"}
    answers = [
        await app.http.post("/tokenize", json={"messages": [*HI, one, *HI]}) for one in (plain, message)
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].json()["tokens"] == answers[1].json()["tokens"]
    assert "warning" not in answers[1].headers


@pytest.mark.parametrize(
    "call",
    [
        {**CALL, "index": 0, "extra_content": {"google": {"thought_signature": "x"}}},
        {**CALL, "function": {**CALL["function"], "parsed_arguments": {"at": 1}}},
        {**CALL, "function": {"name": "look", "arguments": {"at": 1}}, "provider_specific_fields": None},
    ],
)
async def test_tool_calls_are_read_as_an_sdk_dumps_them(app: App, call: dict[str, Any]) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "5"}
    tokens = []
    for one in (CALL, call):
        messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [one]}, result]
        answer = await app.http.post("/tokenize", json={"messages": messages})
        assert answer.status_code == 200, answer.text
        tokens.append(answer.json()["tokens"])
    assert tokens[0] == tokens[1]


async def test_a_history_with_deprecated_fields_is_accepted(app: App) -> None:
    """`function_call`, the role `function`, calls of custom tools, and empty results."""
    call = {"name": "look", "arguments": "{}"}
    custom = {"id": "c2", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "look", "content": "5"},
        {"role": "assistant", "content": "", "tool_calls": [custom]},
        {"role": "tool", "tool_call_id": "c2", "content": None},
        {"role": "assistant", "content": None},
        *HI,
    ]
    assert await warning_of(app, CHAT, messages=messages) is None


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def test_a_hosted_tool_is_ignored_and_named(app: App) -> None:
    tools = [{"type": "web_search"}, FUNCTION, {"type": "custom", "custom": {"name": "g"}}]
    warning = await warning_of(app, CHAT, messages=HI, tools=tools, web_search_options={})
    assert warning is not None
    for part in ("tools[0]", "web_search", "tools[2]", "custom", "web_search_options"):
        assert part in warning
    assert "tools[1]" not in warning


async def test_an_error_has_the_clients_index_next_to_an_ignored_tool(app: App) -> None:
    tools = [{"type": "web_search"}, {"type": "function", "function": {"name": 5}}]
    status, answer = await app.post(CHAT, messages=HI, tools=tools)
    assert (status, answer["error"]["param"]) == (400, "tools[1].function.name")


async def test_a_hosted_tool_cannot_be_forced(app: App) -> None:
    status, answer = await app.post(CHAT, messages=HI, tools=[{"type": "web_search"}], tool_choice="required")
    assert (status, answer["error"]["param"]) == (400, "tool_choice")
    choice = {"type": "function", "function": {"name": "g"}}
    status, answer = await app.post(CHAT, messages=HI, tools=[FUNCTION], tool_choice=choice)
    assert (status, answer["error"]["param"]) == (400, "tool_choice.function.name")


async def test_only_allowed_tools_are_offered(app: App) -> None:
    other = {"type": "function", "function": {"name": "g"}}
    named = [{"type": "function", "function": {"name": "g"}}]

    async def prompt_of(tools: list[Any], choice: Any = "auto") -> str:
        answer = await app.ask(
            CHAT, messages=HI, tools=tools, tool_choice=choice, return_prompt_text=True, max_tokens=1
        )
        return str(answer["prompt_text"])

    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": named}}
    assert await prompt_of([FUNCTION, other], choice) == await prompt_of([other])
    status, answer = await app.post(CHAT, messages=HI, tools=[FUNCTION], tool_choice=choice)
    assert (status, answer["error"]["param"]) == (400, "tool_choice.allowed_tools.tools")


async def test_unreadable_content_is_refused(app: App) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    status, answer = await app.post(CHAT, messages=[{"role": "user", "content": [image]}])
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].type")
