"""OpenAI's Responses API with an engine that speaks chats alone: real processes, real SDK, Codex's forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.api.test_gateway import berth_with
from tests.berth_process import BerthProcess
from tests.chat_engine import command
from tests.engine.server.test_codex import APPLY_PATCH, BEGINNING, TOOLS, codex, message

KEYS = {"API_KEYS": "one,two", "ADMIN_API_KEYS": "boss"}
TEXT = {"type": "input_text", "text": "done"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,iVBO"}
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    models = {"teller": {"command": command(), "aliases": ["gpt-5-codex", "fake"]}}
    with berth_with(tmp_path_factory.mktemp("responses"), models, **KEYS) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[openai.OpenAI]:
    with client_of(berth, "one") as client:
        yield client


def client_of(berth: BerthProcess, key: str) -> openai.OpenAI:
    return openai.OpenAI(api_key=key, base_url=f"{berth.url}/v1", max_retries=0, timeout=30)


def seen(berth: BerthProcess) -> dict[str, Any]:
    """The last chat that the engine got."""
    headers = {"authorization": "Bearer boss"}
    with berth.client() as client:
        [instance] = client.get("/instances", headers=headers).json()["data"]
        path = f"/proxy/{instance['instance_id']}/v1/seen"
        body: dict[str, Any] = client.get(path, headers=headers).json()["body"]
    return body


def ask(client: openai.OpenAI, order: Any, is_streamed: bool, **fields: Any) -> Any:
    fields = {"model": "teller", "input": order, **fields}
    if not is_streamed:
        return client.responses.create(**fields)
    with client.responses.stream(**fields) as stream:
        return stream.get_final_response()


def events_of(berth: BerthProcess, body: Any, key: str = "one") -> list[dict[str, Any]]:
    """The events of a stream; their names and numbers are checked."""
    with berth.client() as http:
        got = http.post("/v1/responses", json=body, headers={"authorization": f"Bearer {key}"})
    assert got.status_code == 200, got.text
    events = []
    for block in got.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_response_is_a_chat_for_the_engine(
    client: openai.OpenAI, berth: BerthProcess, is_streamed: bool
) -> None:
    got = ask(
        client, "Hello there", is_streamed, instructions="Be kind.", temperature=0.5, max_output_tokens=20,
        metadata={"a": "b"}, reasoning={"effort": "xhigh"},
    )  # fmt: skip
    assert (got.output_text, got.status, got.model) == (" Hello there", "completed", "teller")
    assert (got.metadata, got.instructions, got.max_output_tokens) == ({"a": "b"}, "Be kind.", 20)
    usage = got.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 4, 15)
    assert usage.input_tokens_details.cached_tokens == 5
    body = seen(berth)
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello there"},
    ]
    assert (body["max_tokens"], body["temperature"], body["reasoning_effort"]) == (20, 0.5, "high")


def test_a_stream_has_openais_events_in_order(berth: BerthProcess) -> None:
    events = events_of(berth, {"model": "teller", "input": "think", "stream": True})
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["reasoning_text.delta"] * 2,
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *["output_text.delta"] * 3,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("order", ["call", "call-stop"])
def test_parallel_calls_are_items_of_their_own(
    client: openai.OpenAI, berth: BerthProcess, order: str, is_streamed: bool
) -> None:
    choice: Any = {"type": "function", "name": "weather"}
    got = ask(client, order, is_streamed, tools=[WEATHER, {**WEATHER, "name": "clock"}], tool_choice=choice)
    assert [(item.type, item.call_id, item.name, item.arguments) for item in got.output] == [
        ("function_call", "call_1", "weather", '{"city":"Oslo"}'),
        ("function_call", "call_2", "clock", "{}"),
    ]
    body = seen(berth)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert body["tools"][0]["function"] == {
        "name": "weather",
        "parameters": {"type": "object"},
        "strict": True,
    }


@pytest.mark.parametrize(
    ("order", "status", "reason"),
    [
        ("length", "incomplete", "max_output_tokens"),
        ("no-usage", "completed", None),
        ("no-done", "completed", None),
        ("bytes", "completed", None),
    ],
)
def test_the_end_of_a_response(
    client: openai.OpenAI, berth: BerthProcess, order: str, status: str, reason: str | None
) -> None:
    whole = ask(client, order, False)
    assert (whole.status, whole.incomplete_details and whole.incomplete_details.reason) == (status, reason)
    last = events_of(berth, {"model": "teller", "input": order, "stream": True})[-1]
    assert last["type"] == f"response.{status}"
    assert last["response"]["output"][0]["content"][0]["text"] == " It is här."


def test_a_schema_for_the_answer(client: openai.OpenAI, berth: BerthProcess) -> None:
    form: Any = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}
    got = ask(client, "a", False, text={"format": form, "verbosity": "low"})
    assert seen(berth)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": True},
    }
    assert got.text.format.type == "json_schema"


# Codex.


def test_codex_with_its_tools(berth: BerthProcess) -> None:
    shell = {"type": "local_shell"}
    events = events_of(
        berth, codex([*BEGINNING, message("user", "call")], model="gpt-5-codex", tools=[*TOOLS, shell])
    )
    assert events[-1]["type"] == "response.completed"
    body = seen(berth)
    names = [tool["function"]["name"] for tool in body["tools"]]
    assert names == [
        *("exec_command", "update_plan", "apply_patch", "view_image", "tool_search"),
        *("collaboration__spawn_agent", "local_shell"),
    ]
    custom = body["tools"][2]["function"]
    assert custom["parameters"]["required"] == ["input"] and "Lark grammar" in custom["description"]
    assert [each["role"] for each in body["messages"]] == ["system", "user", "user", "user", "user"]
    assert body["messages"][0]["content"].startswith("You are Codex.\n\n<permissions")
    assert "prompt_cache_key" not in body and "include" not in body
    repeated = [tool["type"] for tool in events[0]["response"]["tools"]]
    assert "web_search" not in repeated and "custom" in repeated


def test_codex_history_with_calls_and_sealed_reasoning(berth: BerthProcess) -> None:
    first = events_of(berth, codex([message("user", "think")]))[-1]["response"]["output"][0]
    assert first["type"] == "reasoning" and first["encrypted_content"]
    history = [
        message("user", "Fix it."),
        {"type": "reasoning", "summary": [], "encrypted_content": first["encrypted_content"]},
        {"type": "function_call", "name": "exec_command", "arguments": '{"cmd":"ls"}', "call_id": "c1"},
        {"type": "custom_tool_call", "name": "apply_patch", "input": "*** ä", "call_id": "c2"},
        {
            "type": "local_shell_call", "call_id": "c3", "status": "completed",
            "action": {"type": "exec", "command": ["ls", "-l"], "timeout_ms": 100},
        },
        {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [TEXT]},
        {"type": "function_call_output", "call_id": "c3", "output": [IMAGE]},
        {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"query": "q"}},
        message("user", "Go on."),
    ]  # fmt: skip
    events_of(berth, codex(history))
    got = seen(berth)["messages"][1:]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in got[1]["tool_calls"]]
    assert (got[1]["role"], got[1]["reasoning_content"]) == ("assistant", "Hmm.")
    assert calls == [
        ("exec_command", '{"cmd":"ls"}'),
        ("apply_patch", '{"input": "*** ä"}'),
        ("local_shell", '{"command": ["ls", "-l"], "timeout_ms": 100}'),
    ]
    assert [(each["role"], each.get("tool_call_id"), each.get("content")) for each in got[2:]] == [
        ("tool", "c1", "a.py"),
        ("tool", "c2", "done"),
        ("tool", "c3", "The result is an image, which follows."),
        ("user", None, [{"type": "image_url", "image_url": {"url": IMAGE["image_url"]}}]),
        ("assistant", None, None),
        ("tool", "ws", "completed"),
        ("user", None, "Go on."),
    ]


def test_reasoning_that_was_cut_off_is_a_message_with_text(berth: BerthProcess) -> None:
    """llama.cpp's server refuses an assistant's message without content and calls."""
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hmm."}]}
    events_of(berth, codex([message("user", "Think."), thought, message("user", "Go on.")]))
    got = [each for each in seen(berth)["messages"] if each["role"] == "assistant"]
    assert got == [{"role": "assistant", "content": "", "reasoning_content": "Hmm."}]


def test_calls_of_custom_and_shell_tools_are_theirs(berth: BerthProcess) -> None:
    custom = {**APPLY_PATCH, "name": "weather"}
    shell = {"type": "function", "name": "clock"}
    events = events_of(berth, codex([message("user", "call")], tools=[custom, shell]))
    items = events[-1]["response"]["output"]
    assert [(item["type"], item.get("input")) for item in items] == [
        ("custom_tool_call", "Oslo"),  # the engine wrote {"city": "Oslo"}
        ("function_call", None),
    ]
    kinds = [event["type"] for event in events]
    assert (
        "response.custom_tool_call_input.done" in kinds and "response.function_call_arguments.done" in kinds
    )


# State.


def test_a_stored_response_goes_on(client: openai.OpenAI, berth: BerthProcess) -> None:
    first = ask(client, "Hello there", False, instructions="Only now.")
    second = ask(client, "And you", True, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert seen(berth)["messages"] == [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": " Hello there"},
        {"role": "user", "content": "And you"},
    ]
    assert client.responses.retrieve(second.id).output_text == " And you"
    items = client.responses.input_items.list(second.id, order="asc", limit=2)
    assert [item.type for item in items.data] == ["message", "message"] and items.has_more
    reference: Any = [{"type": "item_reference", "id": first.output[0].id}, message("user", "a")]
    ask(client, reference, False)
    assert seen(berth)["messages"][0] == {"role": "assistant", "content": " Hello there"}
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(second.id)
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, "a", False, previous_response_id=second.id)


def test_a_response_is_its_keys_alone(client: openai.OpenAI, berth: BerthProcess) -> None:
    mine = ask(client, "Hello there", False)
    with client_of(berth, "two") as other:
        with pytest.raises(openai.NotFoundError) as caught:
            ask(other, "a", False, previous_response_id=mine.id)
        assert (caught.value.param, caught.value.code) == ("previous_response_id", "response_not_found")
        with pytest.raises(openai.APIStatusError):
            other.responses.retrieve(mine.id)
        with pytest.raises(openai.APIStatusError):
            other.responses.delete(mine.id)
    assert client.responses.retrieve(mine.id).id == mine.id


def test_nothing_is_stored_that_should_not_be(client: openai.OpenAI) -> None:
    got = ask(client, "a", True, store=False)
    with pytest.raises(openai.APIStatusError):
        client.responses.retrieve(got.id)


def test_tokens_are_counted_by_the_engine(berth: BerthProcess) -> None:
    with berth.client() as http:
        body = {"model": "teller", "input": "a", "tools": [WEATHER]}
        got = http.post("/v1/responses/input_tokens", json=body, headers={"authorization": "Bearer one"})
    assert got.json() == {"object": "response.input_tokens", "input_tokens": 11}


# What goes wrong.


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [{"role": "king", "content": "a"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]},
            "input[0].content[0].text",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"effort": "wild"}}, "reasoning.effort"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
def test_what_can_not_be_translated_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], named: str
) -> None:
    body = {"model": "teller", "input": "a", **fields}
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.post("/responses", body=body, cast_to=httpx.Response)
    assert caught.value.param == named
    assert str(caught.value.body["message"]).startswith(f"{named}: ")  # type: ignore[index]


def test_an_engines_error_keeps_its_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="too many requests") as caught:
        ask(client, "refuse", False)
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize("order", ["error", "cut", "unfinished"])
def test_a_broken_stream_fails_and_never_ends_cleanly(berth: BerthProcess, order: str) -> None:
    body = {"model": "teller", "input": order, "stream": True}
    received = b""
    headers = {"authorization": "Bearer one"}
    with (
        berth.client() as http,
        http.stream("POST", "/v1/responses", json=body, headers=headers) as got,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        for piece in got.iter_raw():
            received += piece
    name, _, data = received.decode().strip().split("\n\n")[-1].partition("\n")
    assert name == "event: response.failed"
    failed = json.loads(data.removeprefix("data: "))["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert failed["error"]["message"]
