"""Which responses are cached, and that a cached response is the same to the byte."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import date
from typing import Any

import pytest

from api.gateway import response_cache as cache_module
from api.gateway.response_cache import ResponseCache
from api.gateway.signs_of_life import sign_of_life
from api.gateway.sse_keep_alive import SseKeepAlive
from tests.api.protocol_apps import JSON, SSE, Got, Inner, ask, chat_answer, chat_stream

CHAT = "/v1/chat/completions"
GREEDY = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]}
MEGABYTE = 1024 * 1024


def cache_around(inner: Any, max_bytes: int = MEGABYTE, **models: str | None) -> ResponseCache:
    identities = models or {"demo": "demo-as-loaded"}
    return ResponseCache(inner, max_bytes, identities.get)


def cache_status(got: Got) -> str | None:
    value = got.header(b"x-berth-cache")
    return value.decode() if value is not None else None


async def ask_twice(inner: Inner, body: Any, **kwargs: Any) -> list[str | None]:
    cache = cache_around(inner)
    return [cache_status(await ask(cache, CHAT, body, **kwargs)) for _ in range(2)]


async def test_the_same_request_gets_the_same_bytes_from_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    inner = Inner([chat_answer("a")[:9], chat_answer("a")[9:]])
    cache = cache_around(inner)
    first = await ask(cache, CHAT, GREEDY)
    inner.pieces = [chat_answer("another")]
    with caplog.at_level(logging.INFO, "berth.access"):
        second = await ask(cache, CHAT, GREEDY, headers=[(b"x-request-id", b"mine")])
    assert (cache_status(first), cache_status(second)) == ("miss", "hit")
    assert (second.status, second.body, second.is_whole) == (200, first.body, True)
    assert second.header(b"content-type") == b"application/json"
    assert second.header(b"content-length") == b"%d" % len(first.body)
    assert (first.header(b"x-request-id"), second.header(b"x-request-id")) == (b"made-inside", b"mine")
    assert len(inner.bodies) == 1
    assert (cache.num_hits, cache.num_misses) == (1, 1)
    assert '127.0.0.1 "POST /v1/chat/completions" 200' in caplog.text
    assert "ms mine, cache hit" in caplog.text


async def test_streams_are_cached_whole() -> None:
    inner = Inner([b": waiting\n\n", *chat_stream("a", "b")], headers=[SSE])
    cache = cache_around(inner)
    first, second = [await ask(cache, CHAT, {**GREEDY, "stream": True}) for _ in range(2)]
    assert (cache_status(first), cache_status(second)) == ("miss", "hit")
    assert (second.events, second.header(b"content-type")) == (first.events, SSE[1])
    assert second.header(b"x-accel-buffering") == b"no"
    assert first.pieces[:2] == [b": waiting\n\n", chat_stream("a")[0]]  # as they arrived, not collected


async def test_signs_of_life_are_not_part_of_a_cached_stream() -> None:
    chunks = chat_stream("a", "b")

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        sign = sign_of_life(scope, CHAT, GREEDY, "r1", has_text=True)
        async with SseKeepAlive(send, 0.01, [], CHAT.encode(), sign) as stream:
            await asyncio.sleep(0.05)
            await Inner(chunks, headers=[SSE])(scope, receive, stream.send)

    cache = cache_around(slow)
    first, second = [await ask(cache, CHAT, {**GREEDY, "stream": True}) for _ in range(2)]
    assert (cache_status(first), cache_status(second)) == ("miss", "hit")
    assert b"Loading demo" in first.body and first.body.endswith(b"".join(chunks))
    assert second.body == b"".join(chunks)


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.0},
        {"temperature": 1, "seed": 5},
        {"temperature": None, "seed": -7},
        {"n": 3},
        {"keep_alive": None, "store": False},
    ],
)
async def test_deterministic_requests_are_cached(more: dict[str, Any]) -> None:
    assert await ask_twice(Inner([chat_answer()]), {**GREEDY, **more}) == ["miss", "hit"]


@pytest.mark.parametrize(
    "body",
    [
        {**GREEDY, "temperature": 0.1},
        {**GREEDY, "temperature": None, "seed": None},
        {**GREEDY, "temperature": 1, "seed": -1},
        {**GREEDY, "temperature": False},
        {**GREEDY, "temperature": "0"},
        {**GREEDY, "keep_alive": 0},
        {**GREEDY, "store": True},
        {**GREEDY, "model": "unknown"},
        {**GREEDY, "model": None},
        {**GREEDY, "messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        {"model": "demo", "messages": []},
        [GREEDY],
        b'{"model": "demo", "temperature": 0',
        b'{"model": "demo", "temperature": 0, "top_p": NaN}',
        b'{"temperature": 0, "a": ' + b"[" * 100_000,
    ],
    ids=str,
)
async def test_other_requests_pass_untouched(body: Any) -> None:
    inner = Inner([chat_answer()])
    assert await ask_twice(inner, body) == [None, None]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert inner.bodies == [raw, raw]


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/responses", "POST"), (CHAT, "PUT"), ("/proxy/a/v1/x", "POST")]
)
async def test_other_paths_and_methods_pass_untouched(path: str, method: str) -> None:
    inner = Inner([chat_answer()])
    cache = cache_around(inner)
    extensions = {"berth.response": object()}
    for _ in range(2):
        assert cache_status(await ask(cache, path, GREEDY, method=method, extensions=extensions)) is None
    assert inner.scopes[0]["extensions"] == extensions  # the fast path stays available


async def test_a_long_body_passes_in_its_original_messages() -> None:
    pieces = [json.dumps(GREEDY).encode()[:-1] + b',"x":"', b"a" * MEGABYTE, b"b", b'"}']
    inner = Inner([chat_answer()])
    assert await ask_twice(inner, None, body_pieces=pieces) == [None, None]
    assert inner.bodies[1] == b"".join(pieces)
    headers = [(b"content-length", b"%d" % (2 * MEGABYTE))]
    assert await ask_twice(inner, GREEDY, headers=headers) == [None, None]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "alias"},
        {"messages": [{"role": "user", "content": "Hello!"}]},
        {"max_tokens": 5},
        {"seed": 1},
        {"stream": True},
        {"unheard_of": 1},
        {"tools": [{"b": 1, "a": 2}]},
    ],
)
async def test_a_different_request_has_a_different_key(change: dict[str, Any]) -> None:
    cache = cache_around(Inner([chat_answer()]), demo="x", alias="x")
    await ask(cache, CHAT, {**GREEDY, "tools": [{"a": 2, "b": 1}]})
    assert cache_status(await ask(cache, CHAT, {**GREEDY, "tools": [{"a": 2, "b": 1}], **change})) == "miss"


async def test_formatting_makes_no_difference() -> None:
    cache = cache_around(Inner([chat_answer()]))
    await ask(cache, CHAT, GREEDY)
    written = json.dumps(dict(reversed(GREEDY.items())), indent=2).replace("Hello", "\\u0048ello")
    assert cache_status(await ask(cache, CHAT, written.encode())) == "hit"
    assert cache_status(await ask(cache, "/v1/completions", GREEDY)) == "miss"


async def test_another_day_has_a_different_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> Tomorrow:
            return cls(2999, 1, 1)

    cache = cache_around(Inner([chat_answer()]))
    await ask(cache, CHAT, GREEDY)
    monkeypatch.setattr(cache_module, "date", Tomorrow)
    assert cache_status(await ask(cache, CHAT, GREEDY)) == "miss"


async def test_a_differently_loaded_model_has_a_different_key() -> None:
    identities = {"demo": "before"}
    inner = Inner([chat_answer()])
    cache = ResponseCache(inner, MEGABYTE, identities.get)
    await ask(cache, CHAT, GREEDY)
    identities["demo"] = "after"
    assert cache_status(await ask(cache, CHAT, GREEDY)) == "miss"
    assert cache_status(await ask(cache, CHAT, GREEDY)) == "hit"


async def test_a_response_is_not_cached_if_its_model_changed_meanwhile() -> None:
    identities = {"demo": "before"}
    inner = Inner([chat_answer()])

    async def changing(*args: Any) -> None:
        identities["demo"] = "after"
        await inner(*args)

    cache = ResponseCache(changing, MEGABYTE, identities.get)
    await ask(cache, CHAT, GREEDY)
    identities["demo"] = "before"
    assert cache_status(await ask(cache, CHAT, GREEDY)) == "miss"
    assert cache.num_bytes == 0


async def test_cache_control_of_the_client_is_respected() -> None:
    inner = Inner([chat_answer("old")])
    cache = cache_around(inner)
    await ask(cache, CHAT, GREEDY)
    inner.pieces = [chat_answer("new")]
    not_kept = await ask(cache, CHAT, GREEDY, headers=[(b"cache-control", b"No-Store")])
    assert (cache_status(not_kept), not_kept.body) == (None, chat_answer("new"))
    assert (await ask(cache, CHAT, GREEDY)).body == chat_answer("old")
    for value in (b"no-cache", b"x, max-age=0"):
        assert cache_status(await ask(cache, CHAT, GREEDY, headers=[(b"cache-control", value)])) == "miss"
    assert (await ask(cache, CHAT, GREEDY)).body == chat_answer("new")


ERROR = b'data: {"error": {"message": "gone"}}\n\n'


@pytest.mark.parametrize(
    "inner",
    [
        Inner([b'{"error":{"message":"no"}}'], 500),
        Inner([b'{"error":{"message":"no"}}'], 200),
        Inner([b"half an ans"]),
        Inner([b""]),
        Inner([chat_answer()], 206),
        Inner([chat_answer().replace(b'"stop"', b'"abort"')]),
        Inner([chat_answer()], headers=[JSON, (b"content-encoding", b"gzip")]),
        Inner([chat_answer()], is_cut=True),
        Inner(chat_stream("a"), headers=[SSE], is_cut=True),
        Inner(chat_stream("a")[:-1], headers=[SSE]),
        Inner([*chat_stream("a")[:-1], ERROR, b"data: [DONE]\n\n"], headers=[SSE]),
        Inner([*chat_stream("a"), b"data: more"], headers=[SSE]),
    ],
    ids=[
        "500",
        "error",
        "half",
        "empty",
        "206",
        "abort",
        "gzip",
        "cut",
        "stream-cut",
        "no-done",
        "event",
        "more",
    ],
)
async def test_incomplete_and_error_responses_are_not_cached(inner: Inner) -> None:
    cache = cache_around(inner)
    for _ in range(2):
        got = await ask(cache, CHAT, GREEDY)
        assert (cache_status(got), got.status, got.is_whole) == ("miss", inner.status, not inner.is_cut)
        assert got.body == b"".join(inner.pieces)
    assert cache.num_bytes == 0


async def test_text_about_errors_is_not_an_error() -> None:
    inner = Inner(chat_stream('"error": 5', '{"error": "x", "finish_reason": "abort"}'), headers=[SSE])
    assert await ask_twice(inner, {**GREEDY, "stream": True}) == ["miss", "hit"]
    logprobs: dict[str, Any] = {"choices": [], "error": None}
    assert await ask_twice(Inner([json.dumps(logprobs).encode()]), GREEDY) == ["miss", "hit"]


async def test_a_cut_response_is_cut_for_the_client_too() -> None:
    class Channel:
        is_cut = False

        def abort(self) -> None:
            self.is_cut = True

    channel = Channel()
    cache = cache_around(Inner(chat_stream("a")[:2], headers=[SSE], is_cut=True))
    got = await ask(cache, CHAT, GREEDY, extensions={"berth.response": channel})
    assert channel.is_cut
    assert not got.is_whole


async def test_an_exception_of_the_inner_application_leaves_nothing_behind() -> None:
    class Failing(Inner):
        async def _answer(self, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            raise OSError("its own")

    cache = cache_around(Failing())
    with pytest.raises(OSError, match="its own"):
        await ask(cache, CHAT, GREEDY)
    assert cache.num_bytes == 0


async def test_memory_stays_within_its_limit_and_recent_entries_stay() -> None:
    inner = Inner([chat_answer("x" * 10_000)])
    cache = cache_around(inner, 64 * 1024)

    async def ask_number(number: int) -> str | None:
        return cache_status(await ask(cache, CHAT, {**GREEDY, "seed": number}))

    for number in range(200):
        assert await ask_number(number) == "miss"
        assert await ask_number(0) == "hit"
        assert cache.num_bytes <= 64 * 1024
    assert await ask_number(199) == "hit"
    assert await ask_number(100) == "miss"


async def test_a_too_long_response_is_neither_cached_nor_collected() -> None:
    inner = Inner([b"x" * 1000] * 50)
    cache = cache_around(inner, 64 * 1024)
    largest = 0

    class Watched(Inner):
        async def _answer(self, send: Any) -> None:
            async def watched(message: Any) -> None:
                nonlocal largest
                await send(message)
                largest = max(largest, cache.num_bytes)

            await super()._answer(watched)

    cache._inner = Watched(inner.pieces)
    got = await ask(cache, CHAT, GREEDY)
    assert len(got.body) == 50_000
    assert largest == 16_000
    assert cache.num_bytes == 0
