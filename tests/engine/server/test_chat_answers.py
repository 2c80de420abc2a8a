"""How model output is returned: reasoning, tool calls, echo, token ids; with and without streaming."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.server.in_process import CHAT, App, app_in_process

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(
        fake_model, reasoning_parser="qwen3", tool_call_parser="hermes", trust_request_chat_template=True
    ) as app:
        yield app


@pytest.fixture(scope="module")
async def plain_app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        yield app


async def answer(app: App, **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the only choice, the response), after checking that a stream has the same content."""
    body = {"messages": [USER], **body}
    whole = await app.ask(CHAT, **body)
    (choice,) = whole["choices"]
    chunks = await app.stream(CHAT, **{**body, "stream_options": {"include_usage": True}})
    assert without_cached(chunks.pop()["usage"]) == without_cached(whole["usage"])
    streamed = [chunk["choices"][0] for chunk in chunks]
    message = choice["message"]
    for name in ("content", "reasoning"):
        assert "".join(one["delta"].get(name, "") for one in streamed) == (message.get(name) or "")
    calls = [call for one in streamed for call in one["delta"].get("tool_calls", [])]
    assert [call["function"]["name"] for call in calls if "id" in call] == [
        call["function"]["name"] for call in message.get("tool_calls", [])
    ]
    assert "".join(call["function"]["arguments"] for call in calls) == "".join(
        call["function"]["arguments"] for call in message.get("tool_calls", [])
    )
    assert [one["finish_reason"] for one in streamed if one["finish_reason"]] == [choice["finish_reason"]]
    assert streamed[-1]["stop_reason"] == choice["stop_reason"]
    return choice, whole


def without_cached(usage: dict[str, Any]) -> dict[str, Any]:
    """Drop cached tokens: a second request finds the first one's prompt in the cache."""
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


async def test_reasoning_is_separated_from_the_content(app: App) -> None:
    app.will_say("<think>\nhm é\n</think>\n\nYes.")
    choice, whole = await answer(app)
    assert choice["message"]["reasoning"] == "\nhm é\n"
    assert choice["message"]["content"] == "Yes."
    assert choice["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("\nhm é\n".encode())
    assert whole["usage"]["completion_tokens"] == len("<think>\nhm é\n</think>\n\nYes.".encode()) + 1


async def test_reasoning_can_be_excluded(app: App) -> None:
    app.will_say("<think>hm</think>Yes.")
    choice, whole = await answer(app, include_reasoning=False)
    assert choice["message"] == {"role": "assistant", "content": "Yes.", "refusal": None}
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


async def test_truncated_reasoning_is_reasoning(app: App) -> None:
    app.will_say("<think>hm</think>Yes.")
    choice, _ = await answer(app, max_tokens=9)
    assert choice["message"]["reasoning"] == "hm"
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")


async def test_a_call_is_separated_from_the_content(app: App) -> None:
    app.will_say("Well: " + CALL)
    choice, _ = await answer(app, tools=[TOOL])
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "f")
    assert call["id"].startswith("call_")
    assert json.loads(call["function"]["arguments"]) == {"x": "é"}
    assert choice["message"]["content"] == "Well:"
    assert choice["finish_reason"] == "tool_calls"


async def test_calls_alone_have_no_content(app: App) -> None:
    app.will_say(CALL + "\n" + CALL)
    choice, _ = await answer(app, tools=[TOOL])
    assert choice["message"]["content"] is None
    ids = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 2


async def test_only_one_call_without_parallel_tool_calls(app: App) -> None:
    app.will_say(CALL + "\n" + CALL)
    choice, _ = await answer(app, tools=[TOOL], parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL], "tool_choice": "none"}])
async def test_without_tools_a_call_is_text(app: App, fields: dict[str, Any]) -> None:
    app.will_say(CALL)
    choice, _ = await answer(app, **fields)
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"


async def test_a_truncated_call_has_finish_reason_length(app: App) -> None:
    app.will_say(CALL)
    choice, _ = await answer(app, tools=[TOOL], max_tokens=len(CALL.encode()) - 20)
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert '{"x": "é"}'.startswith(call["function"]["arguments"])


async def test_each_choice_has_its_own_calls(app: App) -> None:
    app.will_say("<think>a</think>" + CALL)
    whole = await app.ask(CHAT, messages=[USER], tools=[TOOL], n=3)
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in whole["choices"]]
    assert len(set(ids)) == 3
    chunks = await app.stream(CHAT, messages=[USER], tools=[TOOL], n=3)
    for index in range(3):
        mine = [one["choices"][0] for one in chunks if one["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == ["tool_calls"]


async def test_a_stop_string_in_reasoning_ends_the_output(app: App) -> None:
    app.will_say("<think>ab cd</think>ab")
    choice, _ = await answer(app, stop=["cd"])
    assert choice["message"]["reasoning"] == "ab "
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "cd")


async def test_the_last_message_is_continued_and_echoed(app: App, plain_app: App) -> None:
    messages = [USER, {"role": "assistant", "content": "Once upon"}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    for one in (app, plain_app):
        one.will_say(" a time")
        choice, whole = await answer(one, **fields, echo=True, return_prompt_text=True)
        assert choice["message"]["content"] == "Once upon a time"
        assert whole["prompt_text"].endswith("Once upon")
        choice, whole = await answer(one, **fields)
        assert choice["message"]["content"] == " a time"
        assert "prompt_text" not in whole


async def test_only_assistant_messages_are_echoed(plain_app: App) -> None:
    plain_app.will_say("abc")
    choice, _ = await answer(plain_app, echo=True)
    assert choice["message"]["content"] == "abc"


async def test_parts_are_echoed_as_text(plain_app: App) -> None:
    plain_app.will_say("c")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    choice, _ = await answer(plain_app, echo=True, messages=[USER, {"role": "assistant", "content": parts}])
    assert choice["message"]["content"] == "a\nbc"


async def test_token_ids_are_returned(app: App) -> None:
    app.will_say("<think>a</think>b")
    fields = {"messages": [USER], "return_token_ids": True, "logprobs": True, "return_prompt_text": True}
    whole = await app.ask(CHAT, **fields)
    expected = [*app.runner.script, 0]
    assert whole["choices"][0]["token_ids"] == expected
    assert app.tokenizer.decode(whole["prompt_token_ids"], skip_special_tokens=False) == whole["prompt_text"]
    chunks = await app.stream(CHAT, **fields)
    token_ids = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])]
    assert token_ids == expected
    for name in ("prompt_token_ids", "prompt_text"):
        assert [chunk[name] for chunk in chunks if name in chunk] == [whole[name]]
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [one for each in logprobs for one in each["content"]] == whole["choices"][0]["logprobs"]["content"]


async def test_a_request_can_bring_a_template_if_allowed(app: App, plain_app: App) -> None:
    app.will_say("x")
    template = {
        "chat_template": "{{ word }}: {{ messages[0].content }}",
        "chat_template_kwargs": {"word": "w"},
    }
    whole = await app.ask(CHAT, messages=[USER], return_prompt_text=True, **template)
    assert whole["prompt_text"] == "w: Hi"
    for one, source, said in ((plain_app, "x", "--trust-request-chat-template"), (app, "{{", "Jinja")):
        status, refusal = await one.post(CHAT, messages=[USER], chat_template=source)
        assert (status, refusal["error"]["param"]) == (400, "chat_template")
        assert said in refusal["error"]["message"]


@pytest.mark.parametrize("effort", ["none", "low", "high"])
async def test_reasoning_effort_reaches_the_template(app: App, effort: str) -> None:
    app.will_say("x")
    template = "{{ reasoning_effort }} {{ enable_thinking }}"
    fields = {"chat_template": template, "return_prompt_text": True, "messages": [USER]}
    whole = await app.ask(CHAT, reasoning_effort=effort, **fields)
    assert whole["prompt_text"] == f"{effort} {effort != 'none'}"


@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"tool_choice": TOOL}])
async def test_calls_cannot_be_forced_without_a_parser(plain_app: App, fields: dict[str, Any]) -> None:
    if "function" in fields["tool_choice"]:
        fields = {"tool_choice": {"type": "function", "function": {"name": "f"}}}
    status, refusal = await plain_app.post(CHAT, messages=[USER], tools=[TOOL], **fields)
    assert (status, refusal["error"]["param"]) == (400, "tool_choice")
    assert "--tool-call-parser" in refusal["error"]["message"]


async def test_a_budget_needs_a_reasoning_parser(plain_app: App) -> None:
    status, refusal = await plain_app.post(CHAT, messages=[USER], thinking_token_budget=5)
    assert (status, refusal["error"]["param"]) == (400, "thinking_token_budget")


async def test_a_prompt_can_be_truncated(plain_app: App) -> None:
    plain_app.will_say("x")
    fields = {
        "messages": [{"role": "user", "content": "a" * 3000}],
        "return_token_ids": True,
        "max_tokens": 9,
    }
    status, refusal = await plain_app.post(CHAT, **fields)
    assert (status, refusal["error"]["param"]) == (400, "messages")
    assert "2000" in refusal["error"]["message"]
    left = await plain_app.ask(CHAT, **fields, truncate_prompt_tokens=20)
    assert plain_app.tokenizer.decode(left["prompt_token_ids"], skip_special_tokens=False).endswith(
        "a\n<assistant>"
    )
    right = await plain_app.ask(CHAT, **fields, truncate_prompt_tokens=20, truncation_side="right")
    assert plain_app.tokenizer.decode(right["prompt_token_ids"], skip_special_tokens=False).startswith(
        "<user>a"
    )
    most = await plain_app.ask(CHAT, **fields, truncate_prompt_tokens=-1)
    assert most["usage"]["prompt_tokens"] == 1999
    for wrong in (0, 2001):
        status, refusal = await plain_app.post(CHAT, **fields, truncate_prompt_tokens=wrong)
        assert (status, refusal["error"]["param"]) == (400, "truncate_prompt_tokens")
