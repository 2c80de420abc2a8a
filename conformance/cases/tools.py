"""Tools: required calls are made, follow their schema, and assemble from a stream."""

from __future__ import annotations

import json
from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal, has_keys
from conformance.client import CHAT, WIDE, Api, Stream

group = Group("tools", Need.GENERATE, Need.CHAT, Need.TOOLS)

_MAX_TOKENS = 300


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": f"To {name}.", "parameters": parameters},
    }


_SIDES = ["left", "right"]
_TURN = _tool("turn", side={"enum": _SIDES}, times={"enum": [1, 2]})
_WAIT = _tool("wait", patiently={"type": "boolean"})
_BARE = {"type": "function", "function": {"name": "ring"}}
_TOOLS = [_TURN, _WAIT]
_NAMED = {"type": "function", "function": {"name": "turn"}}
_CHOICES: dict[str, dict[str, Any]] = {
    "required": {"tools": [_TURN], "tool_choice": "required"},
    "required-of-two": {"tools": _TOOLS, "tool_choice": "required"},
    "named": {"tools": _TOOLS, "tool_choice": _NAMED},
    "required-not-in-parallel": {"tools": _TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
}


def _fields(**fields: Any) -> dict[str, Any]:
    return {"ignore_eos": False, "max_tokens": _MAX_TOKENS, **fields}


async def _calls(api: Api, **fields: Any) -> tuple[list[Any], Any]:
    """The calls of a response, and their choice."""
    choice = (await api.chat(**_fields(**fields)))["choices"][0]
    return _whole_calls(choice["message"].get("tool_calls") or [], choice), choice


def _whole_calls(calls: list[Any], choice: Any) -> list[Any]:
    """Drop the last of several calls if the token limit truncated it: a model can repeat calls."""
    return calls[:-1] if len(calls) > 1 and choice["finish_reason"] == "length" else calls


def _check_call(call: Any) -> None:
    """Check that a call names one of the tools and follows its schema."""
    has_keys(call, ["id", "type", "function"], "a call")
    equal(call["type"], "function", "type of a call")
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "turn":
        equal(sorted(arguments), ["side", "times"], "arguments of turn")
        check(arguments["side"] in _SIDES and arguments["times"] in (1, 2), f"arguments {arguments}")
    else:
        equal(call["function"]["name"], "wait", "name of the function")
        check(isinstance(arguments["patiently"], bool), f"arguments {arguments}")


def _assemble(stream: Stream) -> list[dict[str, Any]]:
    """Assemble calls from deltas, as clients do."""
    calls: dict[int, dict[str, Any]] = {}
    for choice in stream.of(0):
        for delta in choice["delta"].get("tool_calls") or []:
            call = calls.setdefault(
                delta["index"], {"id": None, "type": "function", "name": "", "arguments": ""}
            )
            call["id"] = delta.get("id") or call["id"]
            function = delta.get("function") or {}
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for _, call in sorted(calls.items())
    ]


@group.each(_CHOICES)
async def a_call_follows_its_schema(api: Api, fields: dict[str, Any]) -> None:
    calls, choice = await _calls(api, **fields)
    check(calls, f"no call: {choice['message']}")
    for call in calls:
        _check_call(call)


@group.each({str(seed): seed for seed in range(4)})
async def a_call_follows_its_schema_when_sampled_widely(api: Api, seed: int) -> None:
    calls, choice = await _calls(api, **_CHOICES["named"], **WIDE, seed=seed)
    check(calls, f"no call: {choice['message']}")
    for call in calls:
        _check_call(call)


@group.each(_CHOICES)
async def a_streamed_call_is_the_same_as_whole(api: Api, fields: dict[str, Any]) -> None:
    stream = await api.stream_chat(**_fields(**fields))
    calls, choice = await _calls(api, **fields)
    streamed = _whole_calls(_assemble(stream), stream.end())
    for call in streamed:
        _check_call(call)
    equal([call["function"] for call in streamed], [call["function"] for call in calls], "functions")
    equal(stream.end()["finish_reason"], choice["finish_reason"], "finish_reason")


@group.case()
async def a_required_call_ends_with_tool_calls(api: Api) -> None:
    _, choice = await _calls(api, **_CHOICES["required-not-in-parallel"])
    equal(choice["finish_reason"], "tool_calls", "finish_reason")


@group.case()
async def a_named_call_is_of_that_name(api: Api) -> None:
    calls, _ = await _calls(api, **_CHOICES["named"])
    equal([call["function"]["name"] for call in calls], ["turn"], "names")


@group.case()
async def not_in_parallel_is_one_call(api: Api) -> None:
    calls, _ = await _calls(api, **_CHOICES["required-not-in-parallel"])
    equal(len(calls), 1, "number of calls")


@group.case()
async def ids_of_calls_differ(api: Api) -> None:
    ids = [call["id"] for _ in range(2) for call in (await _calls(api, **_CHOICES["required"]))[0]]
    equal(len(set(ids)), len(ids), "number of different ids")


@group.case()
async def the_first_delta_of_a_call_has_id_and_name(api: Api) -> None:
    stream = await api.stream_chat(**_fields(**_CHOICES["named"]))
    deltas = [delta for choice in stream.of(0) for delta in choice["delta"].get("tool_calls") or []]
    check(deltas, "no call in the stream")
    check(deltas[0].get("id") and deltas[0]["function"].get("name") == "turn", f"first delta {deltas[0]}")
    check(not any((delta.get("function") or {}).get("name") for delta in deltas[1:]), "the name is repeated")


@group.each({"none": "none", "auto": "auto", "not-given": None})
async def tools_that_need_not_be_called(api: Api, choice: str | None) -> None:
    answer = await api.chat(**_fields(tools=_TOOLS, tool_choice=choice, max_tokens=8))
    check(answer["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls"), "finish_reason")


@group.case()
async def none_calls_nothing(api: Api) -> None:
    calls, _ = await _calls(api, tools=_TOOLS, tool_choice="none", max_tokens=16)
    equal(calls, [], "calls")


@group.case()
async def tokenize_sees_the_tools(api: Api) -> None:
    messages = [{"role": "user", "content": "Turn."}]
    body = {"model": api.facts.model, "messages": messages, "tools": _TOOLS}
    count = (await api.post("/tokenize", body)).ok()["count"]
    usage = (await api.chat(messages, tools=_TOOLS, max_tokens=1))["usage"]
    equal(usage["prompt_tokens"], count, "prompt_tokens")


@group.case()
async def a_tool_without_parameters(api: Api) -> None:
    calls, choice = await _calls(api, tools=[_BARE], tool_choice="required", parallel_tool_calls=False)
    check(calls, f"no call: {choice['message']}")
    equal(calls[0]["function"]["name"], "ring", "name")
    if choice["finish_reason"] != "length":  # an unconstrained object may have an endless string
        check(isinstance(json.loads(calls[0]["function"]["arguments"]), dict), "arguments are not an object")


def _history(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "turn", "arguments": arguments}}
    return [
        {"role": "user", "content": "Turn left."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "turned"},
    ]


@group.case()
async def a_result_in_the_history(api: Api) -> None:
    messages = _history('{"side": "left", "times": 1}')
    answer = await api.chat(messages, tools=_TOOLS, tool_choice="none", max_tokens=4)
    equal(answer["usage"]["completion_tokens"], 4, "completion_tokens")


@group.case()
async def calls_may_be_sent_back_as_they_came(api: Api) -> None:
    answer = await api.chat(**_fields(**_CHOICES["required-not-in-parallel"]))
    message = answer["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in message["tool_calls"]
    ]
    messages = [{"role": "user", "content": "Turn."}, message, *results]
    again = await api.chat(messages, tools=[_TURN], tool_choice="none", max_tokens=4)
    equal(again["usage"]["completion_tokens"], 4, "completion_tokens")


@group.case()
async def each_of_n_choices_has_its_calls(api: Api) -> None:
    answer = await api.chat(**_fields(**_CHOICES["named"], n=2, **WIDE, seed=1))
    for choice in answer["choices"]:
        check(choice["message"].get("tool_calls"), f"choice {choice['index']} has no call")
        _check_call(choice["message"]["tool_calls"][0])


@group.each(
    {
        "an-unknown-name": {
            "tools": _TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "fly"}},
        },
        "required-without-tools": {"tool_choice": "required"},
        "named-without-tools": {"tool_choice": _NAMED},
        "required-of-no-tools": {"tools": [], "tool_choice": "required"},
        "a-tool-without-a-name": {"tools": [{"type": "function", "function": {}}]},
        "parameters-that-are-text": {
            "tools": [{"type": "function", "function": {"name": "a", "parameters": "b"}}]
        },
    }
)
async def refuses(api: Api, fields: dict[str, Any]) -> None:
    await api.refused(await api.post(CHAT, api.chat_body(**_fields(**fields))))
