"""Anthropic's POST /v1/messages and its token counter."""

from __future__ import annotations

import json
from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal, has_keys
from conformance.client import Answer, Api

group = Group("messages", Need.GENERATE, Need.CHAT, Need.MESSAGES)

_PATH = "/v1/messages"
_USER = [{"role": "user", "content": "Hello"}]
_TOOL = {
    "name": "turn",
    "description": "Turns.",
    "input_schema": {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}},
        "required": ["side"],
        "additionalProperties": False,
    },
}


def _body(api: Api, **fields: Any) -> dict[str, Any]:
    return {"model": api.facts.model, "messages": _USER, "max_tokens": 16, "temperature": 0, **fields}


async def _create(api: Api, **fields: Any) -> Answer:
    return await api.post(_PATH, _body(api, **fields))


async def _events(api: Api, **fields: Any) -> list[Any]:
    events = []
    async with api.http.stream("POST", _PATH, json=_body(api, stream=True, **fields)) as response:
        equal(response.status_code, 200, "status")
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and line != "data: [DONE]":
                events.append(json.loads(line.removeprefix("data: ")))
                equal(events[-1]["type"], name, "type of an event")
    return [event for event in events if event["type"] != "ping"]


def _text(message: Any) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def _error(answer: Answer, status: int) -> Any:
    equal(answer.status, status, f"status (body {answer.text[:200]})")
    has_keys(answer.json, ["type", "error"], "the body of an error")
    equal(answer.json["type"], "error", "type")
    has_keys(answer.json["error"], ["type", "message"], "an error")
    return answer.json["error"]


@group.case()
async def a_message_has_its_fields(api: Api) -> None:
    message = (await _create(api)).ok()
    has_keys(message, ["id", "type", "role", "model", "content", "stop_reason", "usage"], "the message")
    equal(message["type"], "message", "type")
    equal(message["role"], "assistant", "role")


@group.case()
async def usage_counts(api: Api) -> None:
    usage = (await _create(api, max_tokens=3)).ok()["usage"]
    check(usage["input_tokens"] > 0 and 0 < usage["output_tokens"] <= 3, f"usage {usage}")


@group.case()
async def truncated_output_has_a_stop_reason(api: Api) -> None:
    equal((await _create(api, max_tokens=1)).ok()["stop_reason"], "max_tokens", "stop_reason")


@group.each(
    {
        "blocks": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "text": [{"role": "user", "content": "Hello"}],
    }
)
async def takes_its_content_as(api: Api, messages: Any) -> None:
    equal(_text((await _create(api, messages=messages)).ok()), _text((await _create(api)).ok()), "text")


@group.each({"text": "Be brief.", "blocks": [{"type": "text", "text": "Be brief."}]})
async def takes_a_system_prompt_as(api: Api, system: Any) -> None:
    body = {"model": api.facts.model, "messages": _USER}
    counter = f"{_PATH}/count_tokens"
    with_it = (await api.post(counter, {**body, "system": system})).ok()["input_tokens"]
    without = (await api.post(counter, body)).ok()["input_tokens"]
    check(with_it > without, f"{with_it} input tokens with a system prompt, {without} without")


@group.case()
async def a_stream_says_the_same(api: Api) -> None:
    events = await _events(api)
    pieces = [
        event["delta"]["text"]
        for event in events
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "text_delta"
    ]
    equal("".join(pieces), _text((await _create(api)).ok()), "text")


@group.case()
async def a_stream_has_its_grammar(api: Api) -> None:
    types = [event["type"] for event in await _events(api)]
    equal(types[0], "message_start", "first event")
    equal(types[-2:], ["message_delta", "message_stop"], "last events")
    equal(types.count("content_block_start"), types.count("content_block_stop"), "blocks begun and ended")


@group.case()
async def a_stream_has_its_stop_reason(api: Api) -> None:
    events = await _events(api, max_tokens=2)
    delta = next(event for event in events if event["type"] == "message_delta")
    equal(delta["delta"]["stop_reason"], "max_tokens", "stop_reason")
    equal(delta["usage"]["output_tokens"], 2, "output_tokens")


@group.each({"any": {"type": "any"}, "tool": {"type": "tool", "name": "turn"}}, Need.TOOLS)
async def a_tool_is_used(api: Api, choice: dict[str, Any]) -> None:
    message = (await _create(api, tools=[_TOOL], tool_choice=choice, max_tokens=300)).ok()
    uses = [block for block in message["content"] if block["type"] == "tool_use"]
    check(uses, f"no tool_use: {message['content']}")
    equal(uses[0]["name"], "turn", "name")
    check(uses[0]["input"]["side"] in ("left", "right"), f"input {uses[0]['input']}")
    equal(message["stop_reason"], "tool_use", "stop_reason")


@group.case(Need.TOOLS)
async def a_streamed_tool_use_assembles(api: Api) -> None:
    events = await _events(api, tools=[_TOOL], tool_choice={"type": "any"}, max_tokens=300)
    pieces = [
        event["delta"]["partial_json"]
        for event in events
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta"
    ]
    check(json.loads("".join(pieces))["side"] in ("left", "right"), f"input {pieces}")


@group.case()
async def a_result_in_the_history(api: Api) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "turn", "input": {"side": "left"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "turned"}
    messages = [*_USER, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    (await _create(api, messages=messages, tools=[_TOOL])).ok()


@group.case()
async def max_tokens_beyond_the_context_are_a_cap(api: Api) -> None:
    limit = api.facts.max_model_len * 16
    message = (await _create(api, max_tokens=limit, stop_sequences=[" ", "e", "\n"])).ok()
    check(message["stop_reason"] in ("stop_sequence", "end_turn", "max_tokens"), "stop_reason")


@group.case()
async def a_conversation_longer_than_the_context_is_400(api: Api) -> None:
    messages = [{"role": "user", "content": "word " * api.facts.max_model_len * 2}]
    message = _error(await _create(api, messages=messages), 400)["message"]
    check(message.startswith("prompt is too long: "), f"clients look for this wording: {message}")


@group.case()
async def tokens_are_counted(api: Api) -> None:
    body = {"model": api.facts.model, "messages": _USER}
    count = (await api.post(f"{_PATH}/count_tokens", body)).ok()["input_tokens"]
    usage = (await _create(api, max_tokens=1)).ok()["usage"]
    equal(count, usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0), "input tokens")


_CACHE_CONTROL = {"type": "ephemeral", "ttl": "1h", "scope": "global"}


@group.each(
    {
        "adaptive-thinking": {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}},
        "billing": {"service_tier": "standard_only", "speed": "fast", "inference_geo": "us"},
        "cache-control": {"system": [{"type": "text", "text": "Be brief.", "cache_control": _CACHE_CONTROL}]},
        "context-management": {
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
        },
        "diagnostics": {"diagnostics": {"previous_message_id": None}},
        "mcp-servers": {"mcp_servers": [{"type": "url", "name": "x", "url": "https://x.invalid"}]},
        "metadata": {"metadata": {"user_id": "u"}},
        "unknown-field": {"temperatur": 1},
    }
)
async def accepts_fields_without_effect(api: Api, fields: dict[str, Any]) -> None:
    check((await _create(api, **fields)).ok()["usage"]["output_tokens"] > 0, "output_tokens")


_SEARCH = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}
_FOUND = {"type": "web_search_result", "title": "T", "url": "https://x.invalid", "encrypted_content": "x"}


@group.each(
    {
        "redacted-thinking": [{"type": "redacted_thinking", "data": "x"}],
        "thinking": [{"type": "thinking", "thinking": "Hm.", "signature": "EqoBCkgI"}],
        "web-search": [_SEARCH, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [_FOUND]}],
        "citations": [{"type": "text", "text": "So", "citations": [{"type": "char_location"}]}],
    }
)
async def accepts_another_providers_blocks(api: Api, blocks: list[Any]) -> None:
    answer = {"role": "assistant", "content": [*blocks, {"type": "text", "text": "So."}]}
    (await _create(api, messages=[*_USER, answer, *_USER])).ok()


@group.each({"text": "Be brief.", "blocks": [{"type": "text", "text": "Be brief."}]})
async def takes_a_system_turn_at_its_place(api: Api, content: Any) -> None:
    (await _create(api, messages=[*_USER, {"role": "system", "content": content}, *_USER])).ok()


@group.case(Need.TOOLS)
async def a_hosted_tool_is_ignored(api: Api) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {**_TOOL, "defer_loading": True}]
    message = (await _create(api, tools=tools, tool_choice={"type": "any"}, max_tokens=300)).ok()
    [use] = [block for block in message["content"] if block["type"] == "tool_use"]
    equal(use["name"], "turn", "name")


@group.case()
async def a_format_is_followed(api: Api) -> None:
    schema = {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}},
        "required": ["side"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "schema": schema}
    message = (await _create(api, output_config={"format": form}, max_tokens=300)).ok()
    check(json.loads(_text(message))["side"] in ("left", "right"), f"text {_text(message)}")


@group.each(
    {
        "no-messages": {"messages": None},
        "empty-messages": {"messages": []},
        "no-max-tokens": {"max_tokens": None},
        "temperature-3": {"temperature": 3},
        "an-unknown-role": {"messages": [{"role": "wizard", "content": "Hi"}]},
        "a-picture": {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "a-forced-tool-that-is-not-there": {"tool_choice": {"type": "tool", "name": "turn"}},
    }
)
async def refuses(api: Api, fields: dict[str, Any]) -> None:
    equal(_error(await _create(api, **fields), 400)["type"], "invalid_request_error", "type")


@group.case()
async def an_unknown_model_is_404(api: Api) -> None:
    equal(_error(await _create(api, model="no-such-model"), 404)["type"], "not_found_error", "type")
