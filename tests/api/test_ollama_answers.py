"""OpenAI's streams as Ollama's lines or objects: text, thinking, tool calls, times, counts, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from api.http.asgi import Receive, Scope, Send
from api.http.errors import RequestRefused, api_error
from api.http.request_times import COLLECTED, TIMES, RequestTimes
from api.protocols.app import ProtocolApp
from api.protocols.base import LoadRequest
from api.protocols.ollama import ollama_adapters
from tests.api.protocol_apps import JSON, SSE, USAGE, Got, Inner, ask, chat_answer, chat_stream
from tests.api.test_ollama_requests import USER, Models

METRICS = {
    "total_duration", "load_duration",
    "prompt_eval_duration", "prompt_eval_count", "eval_duration", "eval_count",
}  # fmt: skip


def stream_of(*choices: dict[str, Any], **last: Any) -> list[bytes]:
    """A stream of OpenAI's with one choice per chunk, then the usage."""
    chunks: list[dict[str, Any]] = [{"choices": [{"finish_reason": None, **one}]} for one in choices]
    chunks.append({"choices": [], "usage": USAGE, **last})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


def lines_of(got: Got) -> list[dict[str, Any]]:
    assert got.body.endswith(b"\n")
    return [json.loads(line) for line in got.body.decode().split("\n")[:-1]]


async def answered(
    pieces: Sequence[bytes], path: str = "/api/chat", *, inner: Inner | None = None, **fields: Any
) -> Got:
    inner = inner or Inner(pieces, headers=[SSE])
    app = ProtocolApp(inner, ollama_adapters(Models()), protocol_of=lambda _: None, default_model="none")
    asked = {"messages": USER} if path == "/api/chat" else {"prompt": "Hello"}
    return await ask(app, path, {"model": "demo:latest", **asked, **fields})


async def test_a_stream_is_the_default_and_has_one_object_per_line() -> None:
    got = await answered(chat_stream("Hel", "lo"))
    assert got.header(b"content-type") == b"application/x-ndjson"
    assert got.is_whole
    *pieces, last = lines_of(got)
    assert [one["message"] for one in pieces] == [
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
    ]
    assert all(one["model"] == "demo:latest" and one["done"] is False for one in pieces)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 2)
    assert last.keys() >= METRICS
    assert all(datetime.fromisoformat(one["created_at"]).tzinfo for one in (*pieces, last))


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_whole_answer_has_the_same_fields_in_one_object(path: str) -> None:
    inner = Inner(chat_stream("Hel", "lo"), headers=[SSE])
    got = await answered((), path, inner=inner, stream=False)
    assert got.header(b"content-type") == b"application/json"
    assert (got.json["message"]["content"] if path == "/api/chat" else got.json["response"]) == "Hello"
    assert (got.json["done"], got.json["done_reason"]) == (True, "stop")
    assert got.json.keys() >= METRICS
    assert COLLECTED in inner.scopes[0]


async def test_generate_has_the_text_in_response() -> None:
    *pieces, last = lines_of(await answered(chat_stream("Hel", "lo"), "/api/generate"))
    assert [one["response"] for one in (*pieces, last)] == ["Hel", "lo", ""]
    completion = stream_of({"text": "Hel"}, {"text": "lo", "finish_reason": "length"})
    got = await answered(completion, "/api/generate", raw=True, stream=False)
    assert (got.json["response"], got.json["done_reason"]) == ("Hello", "length")
    assert "context" not in got.json


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_thinking_is_separate_from_the_text(field: str) -> None:
    pieces = stream_of(
        {"delta": {field: "2+"}},
        {"delta": {field: "2"}},
        {"delta": {"content": "4"}, "finish_reason": "stop"},
    )
    *parts, _ = lines_of(await answered(pieces))
    assert [(one["message"].get("thinking"), one["message"]["content"]) for one in parts] == [
        ("2+", ""), ("2", ""), (None, "4"),
    ]  # fmt: skip
    got = await answered(pieces, stream=False)
    assert (got.json["message"]["thinking"], got.json["message"]["content"]) == ("2+2", "4")


def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": more["name"]} if "name" in more else {})
    return {
        "delta": {
            "tool_calls": [{"index": index, "function": function, **({"id": more["id"]} if more else {})}]
        }
    }


CALLS = stream_of(
    {"delta": {"content": "Look:"}},
    call(0, "", name="get_weather", id="c1"),
    call(0, '{"city":'),
    call(0, ' "Oslo"}'),
    call(1, "{}", name="now", id="c2"),
    {"delta": {}, "finish_reason": "tool_calls"},
)
WANTED = [
    {"id": "c1", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}},
    {"id": "c2", "function": {"index": 1, "name": "now", "arguments": {}}},
]


async def test_tool_calls_are_whole_and_their_arguments_objects() -> None:
    text, calls, last = lines_of(await answered(CALLS))
    assert text["message"]["content"] == "Look:"
    assert calls["message"] == {"role": "assistant", "content": "", "tool_calls": WANTED}
    assert (calls["done"], last["done"], last["done_reason"]) == (False, True, "stop")
    assert "tool_calls" not in last["message"]
    got = await answered(CALLS, stream=False)
    assert got.json["message"] == {"role": "assistant", "content": "Look:", "tool_calls": WANTED}


async def test_a_call_that_was_cut_off_is_text() -> None:
    cut = stream_of(call(0, '{"city": "Os', name="w", id="c"), {"delta": {}, "finish_reason": "length"})
    broken, last = lines_of(await answered(cut))
    assert broken["message"] == {"role": "assistant", "content": '{"city": "Os'}
    assert last["done_reason"] == "length"


async def test_log_probabilities_of_chats_and_completions() -> None:
    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -2.5, "bytes": None}]
    chat = stream_of(
        {"delta": {"content": "a"}, "logprobs": {"content": [{**top[0], "top_logprobs": top}]}},
        {"delta": {}, "finish_reason": "stop"},
    )
    wanted = [
        {
            "token": "a",
            "logprob": -0.1,
            "bytes": [97],
            "top_logprobs": [top[0], {"token": "b", "logprob": -2.5}],
        }
    ]
    piece, last = lines_of(await answered(chat, logprobs=True, top_logprobs=2))
    assert piece["logprobs"] == wanted
    assert "logprobs" not in last
    assert (await answered(chat, stream=False, logprobs=True)).json["logprobs"] == wanted
    older = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, "b": -2.5}]}
    completion = stream_of({"text": "a", "logprobs": older, "finish_reason": "stop"})
    got = await answered(completion, "/api/generate", raw=True, stream=False, logprobs=True, top_logprobs=2)
    assert got.json["logprobs"] == [
        {
            "token": "a",
            "logprob": -0.1,
            "top_logprobs": [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.5}],
        }
    ]


# Times.


async def test_durations_are_of_the_wait_the_prompt_and_the_answer() -> None:
    """Loading takes until the lease, the prompt until the first text, the answer until the last."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.03)
        scope[TIMES].note_lease()
        await send({"type": "http.response.start", "status": 200, "headers": [SSE]})
        pieces = chat_stream("a", "b")
        delays = {0: 0.0, 1: 0.05, 2: 0.07}  # the role, two texts
        for number, piece in enumerate(pieces):
            await asyncio.sleep(delays.get(number, 0))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    app = ProtocolApp(slow, ollama_adapters(Models()), protocol_of=lambda _: None, default_model="none")
    got = await ask(app, "/api/chat", {"model": "demo", "messages": USER, "stream": False})
    load, prompt, answer = (got.json[f"{name}_duration"] for name in ("load", "prompt_eval", "eval"))
    assert load >= 30e6 and prompt >= 50e6 and answer >= 70e6
    assert load + prompt + answer <= got.json["total_duration"] < 5e9


async def test_the_engines_own_timings_count_where_it_tells_them() -> None:
    timings = {"prompt_n": 4, "prompt_ms": 12.5, "predicted_n": 9, "predicted_ms": 250.75}
    pieces = stream_of({"delta": {"content": "a"}, "finish_reason": "stop"}, timings=timings, usage=None)
    last = lines_of(await answered(pieces))[-1]
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (12_500_000, 250_750_000)
    assert (last["prompt_eval_count"], last["eval_count"]) == (4, 9)


async def test_counts_that_nobody_knows_are_left_out() -> None:
    pieces = stream_of({"delta": {"content": "a"}, "finish_reason": "stop"}, usage=None)
    last = lines_of(await answered(pieces))[-1]
    assert "eval_count" not in last and "prompt_eval_count" not in last


async def test_an_engine_that_ignores_stream_is_understood() -> None:
    got = await answered((), inner=Inner([chat_answer("Hi.", reasoning="Hm.")]), stream=False)
    assert (got.json["message"]["content"], got.json["message"]["thinking"]) == ("Hi.", "Hm.")
    assert got.json["eval_count"] == 2
    assert got.json["eval_duration"] > 0 and "prompt_eval_duration" not in got.json


# Signs of life and errors.


async def test_signs_of_life_leave_every_line_a_json_object() -> None:
    """An empty line would not: Ollama's own clients parse each line."""
    comment = b": waiting for the model\n\n"
    got = await answered([comment, comment, *chat_stream("a")])
    assert got.body.startswith(b"  {")
    assert [one["done"] for one in lines_of(got)] == [False, True]
    got = await answered([comment, *chat_stream("a")], stream=False)
    assert got.body.startswith(b"{")


async def test_another_nodes_signs_of_life_are_passed_on() -> None:
    """It sends chunks with an empty delta, as it does not know that its chat is translated here."""
    sign = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":null}]}\n\n'
    got = await answered([sign, sign, *chat_stream("a")])
    assert got.body.startswith(b"  {")
    assert [one["done"] for one in lines_of(got)] == [False, True]


async def test_an_engine_without_the_api_is_not_an_unknown_model() -> None:
    """Clients pull a model after a 404."""
    inner = Inner([b'{"detail":"Not Found"}'], status=404, headers=[JSON])
    got = await answered((), inner=inner)
    assert (got.status, got.json) == (400, {"error": "the model's engine can't do this: Not Found"})
    unknown = {"error": {"message": "there is no model 'a'", "code": "model_not_found"}}
    got = await answered((), inner=Inner([json.dumps(unknown).encode()], status=404, headers=[JSON]))
    assert (got.status, got.json) == (404, {"error": "there is no model 'a'"})


async def test_errors_have_ollamas_shape_and_the_engines_status() -> None:
    error = {"error": {"message": "the prompt is too long", "code": "context_length_exceeded"}}
    for status, wanted in ((400, 400), (422, 400), (429, 429), (503, 503)):
        inner = Inner([json.dumps(error).encode()], status=status, headers=[JSON, (b"retry-after", b"7")])
        got = await answered((), inner=inner)
        assert (got.status, got.json) == (wanted, {"error": "the prompt is too long"})
        assert got.header(b"retry-after") == b"7"


async def test_an_error_within_a_stream_is_its_last_line() -> None:
    event = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
    got = await answered([*chat_stream("a")[:2], event])
    assert lines_of(got)[-1] == {"error": "out of memory"}
    assert got.is_whole  # else some clients would drop the line together with the connection
    got = await answered([*chat_stream("a")[:2], event], stream=False)
    assert (got.status, got.json) == (500, {"error": "out of memory"})


async def test_a_stream_that_ends_early_is_an_error() -> None:
    got = await answered(chat_stream("a")[:2])
    last = lines_of(got)[-1]
    assert "ended before it was complete" in last["error"]
    got = await answered(chat_stream("a")[:2], stream=False)
    assert (got.status, "ended before" in got.json["error"]) == (502, True)
    got = await answered((), inner=Inner(chat_stream("a")[:2], headers=[SSE], is_cut=True), stream=False)
    assert (got.status, got.json.keys()) == (502, {"error"})


# Loading and unloading.


async def loaded(path: str, **fields: Any) -> tuple[Got, list[LoadRequest]]:
    loads: list[LoadRequest] = []

    async def load(scope: Scope, receive: Receive, send: Send, asked: LoadRequest) -> bool:
        loads.append(asked)
        return True

    inner, adapters = Inner(), ollama_adapters(Models())
    app = ProtocolApp(inner, adapters, protocol_of=lambda _: None, default_model="none", loads=load)
    got = await ask(app, path, {"model": "demo:latest", **fields})
    assert inner.scopes == []
    return got, loads


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/chat", {"messages": []}),
        ("/api/chat", {}),
        ("/api/generate", {"prompt": "", "keep_alive": -1}),
        ("/api/generate", {"stream": False, "keep_alive": "10m"}),
    ],
)
async def test_nothing_asked_loads_the_model(path: str, fields: dict[str, Any]) -> None:
    got, [load] = await loaded(path, **fields)
    assert (load.model, load.unloads) == ("demo", False)
    assert got.json["done_reason"] == "load"
    assert (got.json["model"], got.json["done"]) == ("demo:latest", True)
    shape = {"message": {"role": "assistant", "content": ""}} if path == "/api/chat" else {"response": ""}
    assert got.json.items() >= shape.items()


@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s", "0m", "-0h", "0.0s"])
async def test_a_keep_alive_of_0_unloads_it(keep_alive: Any) -> None:
    got, [load] = await loaded("/api/generate", keep_alive=keep_alive)
    assert load.unloads
    assert got.json["done_reason"] == "unload"


@pytest.mark.parametrize("keep_alive", ["10m", 1, -1, "-1", "1ms", None])
async def test_another_keep_alive_does_not(keep_alive: Any) -> None:
    _, [load] = await loaded("/api/generate", keep_alive=keep_alive)
    assert not load.unloads


async def test_nothing_to_embed_loads_the_model() -> None:
    for path, fields, answer in (
        ("/api/embed", {"input": []}, {"model": "demo:latest", "embeddings": []}),
        ("/api/embed", {"input": ""}, {"model": "demo:latest", "embeddings": []}),
        ("/api/embeddings", {"prompt": ""}, {"embedding": []}),
    ):
        got, [load] = await loaded(path, **fields)
        assert (load.unloads, got.json) == (False, answer)


async def test_a_load_that_fails_is_an_error() -> None:
    async def load(scope: Scope, receive: Receive, send: Send, asked: LoadRequest) -> bool:
        raise RequestRefused(api_error(503, "it failed", "service_unavailable_error", retry_after_s=3))

    adapters = ollama_adapters(Models())
    app = ProtocolApp(Inner(), adapters, protocol_of=lambda _: None, default_model="none", loads=load)
    got = await ask(app, "/api/generate", {"model": "demo"})
    assert (got.status, got.json, got.header(b"retry-after")) == (503, {"error": "it failed"}, b"3")


def test_times_begin_when_the_request_arrives() -> None:
    times = RequestTimes()
    times.note_lease()
    assert times.leased_ns is not None and times.leased_ns >= times.started_ns
