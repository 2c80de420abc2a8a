"""POST /v1/responses and its subroutes."""

from __future__ import annotations

import json
from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal, has_keys
from conformance.client import Answer, Api

group = Group("responses", Need.GENERATE, Need.CHAT, Need.RESPONSES)

_PATH = "/v1/responses"
_TOOL = {
    "type": "function",
    "name": "turn",
    "parameters": {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}},
        "required": ["side"],
        "additionalProperties": False,
    },
}


async def _create(api: Api, given: Any = "Hello", **fields: Any) -> Answer:
    body = {"model": api.facts.model, "input": given, "max_output_tokens": 16, "temperature": 0, **fields}
    return await api.post(_PATH, body)


async def _events(api: Api, given: Any = "Hello", **fields: Any) -> list[Any]:
    """The events of a stream, each with its name checked against its type."""
    body = {"model": api.facts.model, "input": given, "max_output_tokens": 16, "temperature": 0, **fields}
    events = []
    async with api.http.stream("POST", _PATH, json={**body, "stream": True}) as response:
        equal(response.status_code, 200, "status")
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and line != "data: [DONE]":
                events.append(json.loads(line.removeprefix("data: ")))
                equal(events[-1]["type"], name, "type of an event")
    return events


def _text(response: Any) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    )


@group.case()
async def a_response_has_its_fields(api: Api) -> None:
    response = (await _create(api)).ok()
    has_keys(response, ["id", "object", "created_at", "status", "model", "output", "usage"], "the response")
    equal(response["object"], "response", "object")
    check(response["id"].startswith("resp_"), f"id {response['id']}")


@group.case()
async def usage_adds_up(api: Api) -> None:
    usage = (await _create(api)).ok()["usage"]
    equal(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"], "total_tokens")


@group.case()
async def truncated_output_is_incomplete(api: Api) -> None:
    response = (await _create(api, max_output_tokens=1)).ok()
    equal(response["status"], "incomplete", "status")
    equal(response["incomplete_details"]["reason"], "max_output_tokens", "reason")


@group.each(
    {
        "messages": [{"role": "user", "content": "Hello"}],
        "typed-messages": [{"type": "message", "role": "user", "content": "Hello"}],
        "parts": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
    }
)
async def takes_its_input_as(api: Api, given: Any) -> None:
    equal(_text((await _create(api, given)).ok()), _text((await _create(api)).ok()), "text")


@group.case()
async def instructions_are_a_system_message(api: Api) -> None:
    with_it = (await _create(api, instructions="Be brief.")).ok()
    same = (
        await _create(api, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    ).ok()
    equal(with_it["usage"]["input_tokens"], same["usage"]["input_tokens"], "input_tokens")


@group.case()
async def a_stream_says_the_same(api: Api) -> None:
    events = await _events(api)
    pieces = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    equal(pieces, _text((await _create(api)).ok()), "text")


@group.case()
async def a_stream_begins_and_ends(api: Api) -> None:
    types = [event["type"] for event in await _events(api)]
    equal(types[0], "response.created", "first event")
    check(types[-1] in ("response.completed", "response.incomplete"), f"last event {types[-1]}")


@group.case()
async def events_are_numbered(api: Api) -> None:
    numbers = [event["sequence_number"] for event in await _events(api)]
    equal(numbers, list(range(len(numbers))), "sequence_number")


@group.case()
async def the_last_event_holds_the_response(api: Api) -> None:
    events = await _events(api)
    pieces = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    equal(_text(events[-1]["response"]), pieces, "text")
    has_keys(events[-1]["response"]["usage"], ["input_tokens", "output_tokens"], "usage")


@group.case(Need.TOOLS)
async def a_tool_is_called(api: Api) -> None:
    response = (await _create(api, tools=[_TOOL], tool_choice="required", max_output_tokens=300)).ok()
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    check(calls, f"no call: {response['output']}")
    equal(calls[0]["name"], "turn", "name")
    check(json.loads(calls[0]["arguments"])["side"] in ("left", "right"), calls[0]["arguments"])


@group.case()
async def a_response_follows_a_schema(api: Api) -> None:
    form = {"type": "json_schema", "name": "turn", "schema": _TOOL["parameters"]}
    response = (await _create(api, text={"format": form}, max_output_tokens=300)).ok()
    check(json.loads(_text(response))["side"] in ("left", "right"), _text(response))


@group.case()
async def one_may_be_read_again(api: Api) -> None:
    response = (await _create(api, store=True)).ok()
    again = (await api.get(f"{_PATH}/{response['id']}")).ok()
    equal(again["output"], response["output"], "output")


@group.case()
async def one_may_be_continued(api: Api) -> None:
    first = (await _create(api, store=True)).ok()
    second = (await _create(api, "And now?", previous_response_id=first["id"])).ok()
    check(second["usage"]["input_tokens"] > first["usage"]["input_tokens"], "the history isn't in the prompt")


@group.case()
async def one_may_be_deleted(api: Api) -> None:
    response = (await _create(api, store=True)).ok()
    answer = await api.http.delete(f"{_PATH}/{response['id']}")
    equal(answer.status_code, 200, "status")
    await api.refused(await api.get(f"{_PATH}/{response['id']}"), 404)


@group.case()
async def an_unknown_one_is_404(api: Api) -> None:
    await api.refused(await api.get(f"{_PATH}/resp_none"), 404)
    await api.refused(await api.post(f"{_PATH}/resp_none/cancel"), 404)


@group.case()
async def continuing_an_unknown_one_is_404(api: Api) -> None:
    await api.refused(await _create(api, previous_response_id="resp_none"), 404)


@group.each(
    {
        "no-input": {"input": None},
        "temperature-above-2": {"temperature": 3},
        "max-output-tokens-0": {"max_output_tokens": 0},
        "top-p-0": {"top_p": 0},
        "an-unknown-role": {"input": [{"role": "wizard", "content": "Hi"}]},
    }
)
async def refuses(api: Api, fields: dict[str, Any]) -> None:
    await api.refused(await _create(api, **{"given": fields.pop("input", "Hello"), **fields}))


@group.each(
    {
        "include": {"include": ["reasoning.encrypted_content"]},
        "reasoning-summary": {"reasoning": {"summary": "auto"}},
        "verbosity": {"text": {"verbosity": "low"}},
        "service-tier": {"service_tier": "flex"},
        "cache-key": {"prompt_cache_key": "k"},
        "no-obfuscation": {"stream_options": {"include_obfuscation": False}},
        "metadata": {"metadata": {"a": "b"}},
        "max-tool-calls": {"max_tool_calls": 1},
        "client-metadata": {"client_metadata": {"a": "b"}},
        "unknown-field": {"temperatur": 1},
    }
)
async def accepts_fields_without_effect(api: Api, fields: dict[str, Any]) -> None:
    equal(_text((await _create(api, **fields)).ok()), _text((await _create(api)).ok()), "text")


@group.each(
    {
        kind: {"type": kind}
        for kind in ("web_search", "local_shell", "image_generation", "programmatic_tool_calling")
    },
    Need.TOOLS,
)
async def functions_work_beside(api: Api, tool: dict[str, Any]) -> None:
    answer = await _create(api, tools=[tool, _TOOL], tool_choice="required", max_output_tokens=300)
    calls = [item["name"] for item in answer.ok()["output"] if item["type"] == "function_call"]
    check("turn" in calls, f"no call: {calls}")


@group.case(Need.TOOLS)
async def a_custom_tool_is_called(api: Api) -> None:
    tool = {"type": "custom", "name": "note", "description": "Keeps a note."}
    response = (await _create(api, tools=[tool], tool_choice={"type": "custom", "name": "note"})).ok()
    [call] = [item for item in response["output"] if item["type"] == "custom_tool_call"]
    equal(call["name"], "note", "name")
    check(isinstance(call["input"], str), f"input {call['input']}")


@group.each(
    {
        "empty-reasoning": [{"type": "reasoning", "id": "rs_1", "summary": []}],
        "encrypted-reasoning": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}],
        "a-web-search": [{"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}}],
        "a-custom-call": [
            {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        ],
        "a-shell-call": [
            {"type": "local_shell_call", "id": "l", "call_id": "c", "status": "completed", "action": {}},
            {"type": "local_shell_call_output", "call_id": "c", "output": "done"},
        ],
        "a-refusal": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
    }
)
async def accepts_items_in_the_history(api: Api, items: list[dict[str, Any]]) -> None:
    user = {"role": "user", "content": "Hello"}
    equal((await _create(api, [user, *items, user])).ok()["object"], "response", "object")


@group.case()
async def a_stored_item_may_be_referred_to(api: Api) -> None:
    first = (await _create(api)).ok()
    user = {"role": "user", "content": "Hello"}
    spelt = (await _create(api, [user, *first["output"], user])).ok()
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    referred = (await _create(api, [user, *references, user])).ok()
    equal(referred["usage"]["input_tokens"], spelt["usage"]["input_tokens"], "input_tokens")


@group.case()
async def an_unknown_model_is_404(api: Api) -> None:
    await api.refused(await _create(api, model="no-such-model"), 404)
