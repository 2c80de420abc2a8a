"""Rules for every protocol: routes and models' choices, errors, broken streams, failing adapters."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.http.asgi import Message, Receive, Scope, Send
from api.protocols import response_translator as answer_module
from api.protocols.app import ProtocolApp
from api.protocols.base import ChatMessage, ErrorDetail, Json, StreamTranslator
from api.protocols.generate import GenerateProtocol, GenerateRequest
from docs.examples.alpaca import AlpacaProtocol
from docs.examples.summarize import SummarizeProtocol, SummaryRequest
from tests.api.protocol_apps import JSON, SSE, USAGE, Got, Inner, ask, chat_answer, chat_stream

PROMPT = {"prompt": "Hello"}
STREAMED = {"prompt": "Hello", "stream": True}


class ChatLines(AlpacaProtocol):
    """On a route of OpenAI's own, for models with this protocol."""

    name = "lines"
    route = "/chat/completions"


CHOICES = {"base": "alpaca", "liner": "lines"}


def app_around(inner: Any, *more: Any) -> ProtocolApp:
    adapters = [GenerateProtocol(), AlpacaProtocol(), SummarizeProtocol(), ChatLines(), *more]
    return ProtocolApp(inner, adapters, protocol_of=CHOICES.get, default_model="standard")


class Aborted:
    """The server's extension; records whether the connection was cut."""

    def __init__(self) -> None:
        self.is_cut = False

    def abort(self) -> None:
        self.is_cut = True


async def ask_cut(app: ProtocolApp, path: str, body: Any) -> tuple[Got, bool]:
    """The response, and whether its connection was cut."""
    channel = Aborted()
    got = await ask(app, path, body, extensions={"berth.response": channel})
    return got, channel.is_cut


# Choice of the adapter


async def test_requests_without_an_adapter_pass_unchanged() -> None:
    inner = Inner([b"{}"])
    extensions = {"berth.response": object()}
    for path, method in [("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/generate/x", "POST")]:
        await ask(app_around(inner), path, b"not json", method=method, extensions=extensions)
        scope = inner.scopes[-1]
        assert (scope["path"], scope["extensions"], inner.bodies[-1]) == (path, extensions, b"not json")


async def test_a_models_protocol_selects_the_adapter_of_a_route() -> None:
    inner = Inner([json.dumps({"choices": [{"text": " Hi", "finish_reason": "stop"}]}).encode()])
    got = await ask(app_around(inner), "/generate", {**PROMPT, "model": "base"})
    assert got.json["text"] == " Hi"
    assert inner.scopes[0]["path"] == "/v1/completions"
    assert inner.asked == {"model": "base", "prompt": "### Instruction:\nHello\n\n### Response:\n"}
    inner.pieces = [chat_answer()]
    await ask(app_around(inner), "/generate", {**PROMPT, "model": "other"})
    assert inner.scopes[1]["path"] == "/v1/chat/completions"


async def test_openais_routes_change_only_for_models_with_a_protocol() -> None:
    inner = Inner([chat_answer()])
    pieces = [b'{"model": "demo",', b' "messages": []}']
    got = await ask(app_around(inner), "/chat/completions", body_pieces=pieces)
    assert (got.body, inner.bodies[-1]) == (chat_answer(), b"".join(pieces))
    got = await ask(app_around(inner), "/chat/completions", {**PROMPT, "model": "liner"})
    assert got.json["text"] == "Hello"
    for body in (b"{", b"[]", b'{"model": 5}'):
        assert (await ask(app_around(inner), "/chat/completions", body)).body == chat_answer()
    await ask(app_around(inner), "/chat/completions", method="OPTIONS")
    assert inner.scopes[-1]["method"] == "OPTIONS"


async def test_the_inner_request_is_reframed_and_nothing_is_lost() -> None:
    inner = Inner(
        [chat_answer()], headers=[JSON, (b"etag", b"1"), (b"x-engine", b"yes"), (b"content-length", b"5")]
    )
    headers = [
        (b"content-length", b"19"),
        (b"content-type", b"text/plain"),
        (b"accept-encoding", b"gzip"),
        (b"authorization", b"Bearer k"),
        (b"x-request-id", b"mine"),
    ]
    got = await ask(app_around(inner), "/generate", PROMPT, headers=headers)
    given = dict(inner.scopes[0]["headers"])
    assert len(given) == len(inner.scopes[0]["headers"])
    assert given == {
        b"host": b"localhost",
        b"authorization": b"Bearer k",
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(inner.bodies[0]),
        b"x-request-id": b"mine",
    }
    assert (got.header(b"x-engine"), got.header(b"etag")) == (b"yes", None)
    assert got.header(b"content-length") == b"%d" % len(got.body)


# Errors


async def test_an_engines_error_keeps_status_and_retry_after() -> None:
    body = b'{"error":{"message":"full","type":"rate_limit_error","param":null,"code":"queue_full"}}'
    inner = Inner([body[:20], body[20:]], 429, [JSON, (b"retry-after", b"7"), (b"x-request-id", b"abc")])
    for asked in (PROMPT, STREAMED):
        got = await ask(app_around(inner), "/generate", asked)
        assert (got.status, got.json, got.is_whole) == (429, json.loads(body), True)
        assert (got.header(b"retry-after"), got.header(b"x-request-id")) == (b"7", b"abc")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object":"error","message":"old","type":"BadRequestError","code":400}', "old"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"error":"just text"}', "just text"),
        (b"<html>no</html>", "<html>no</html>"),
        (b"", "the engine gave no reason"),
    ],
)
async def test_the_message_is_found_in_any_error_format(body: bytes, message: str) -> None:
    got = await ask(app_around(Inner([body], 400)), "/generate", PROMPT)
    assert (got.status, got.json["error"]["message"]) == (400, message)


async def test_a_protocol_formats_errors_itself() -> None:
    got = await ask(app_around(Inner([b'{"error":{"message":"no"}}'], 404)), "/summarize", {"text": "a"})
    assert (got.status, got.json) == (404, {"problem": "no"})
    got = await ask(app_around(Inner()), "/summarize", {"text": "  "})
    assert (got.status, got.json) == (422, {"problem": "text is empty; there is nothing to summarize"})


@pytest.mark.parametrize(
    "inner",
    [
        Inner([b"[]"]),
        Inner([b"{"]),
        Inner([b"{}"], 307),
        Inner([b"{}"], headers=[JSON, (b"content-encoding", b"gzip")]),
        Inner(chat_stream("a"), headers=[SSE]),
        Inner([chat_answer()[:20]], is_cut=True),
    ],
    ids=["list", "half", "redirect", "compressed", "streamed", "cut"],
)
async def test_an_invalid_response_is_a_502(inner: Inner) -> None:
    got, is_cut = await ask_cut(app_around(inner), "/generate", PROMPT)
    assert (got.status, got.is_whole, is_cut) == (502, True, False)
    assert got.json["error"]["type"] == "upstream_error"


async def test_a_too_long_response_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "MAX_ANSWER_BYTES", 1000)
    inner = Inner([b"x" * 300] * 10)
    got = await ask(app_around(inner), "/generate", PROMPT)
    assert got.status == 502
    assert inner.failure is not None  # it was stopped


# Streams


async def test_an_error_within_a_stream_is_its_last_event() -> None:
    error = {"message": "out of memory", "type": "engine_error", "param": None, "code": "oom"}
    broken = [*chat_stream("a", "b")[:2], b"data: " + json.dumps({"error": error}).encode() + b"\n\n"]
    inner = Inner([*broken, b"data: [DONE]\n\n"], headers=[SSE])
    got, is_cut = await ask_cut(app_around(inner), "/generate", STREAMED)
    assert got.events == [{"text": "a"}, {"error": error}]
    assert is_cut
    assert not got.is_whole
    assert inner.failure is None  # its own error: it ends by itself


@pytest.mark.parametrize("num_events", [0, 1, 3])
async def test_a_cut_stream_stays_cut(num_events: int) -> None:
    inner = Inner(chat_stream("a", "b", "c")[:num_events], headers=[SSE], is_cut=True)
    got, is_cut = await ask_cut(app_around(inner), "/generate", STREAMED)
    assert is_cut
    assert not got.is_whole
    assert "[DONE]" not in got.events


async def test_a_stream_ending_within_an_event_is_broken() -> None:
    inner = Inner([*chat_stream("a")[:2], b'data: {"choi'], headers=[SSE])
    got, is_cut = await ask_cut(app_around(inner), "/generate", STREAMED)
    assert got.events[0] == {"text": "a"}
    assert "in the middle of an event" in got.events[1]["error"]["message"]
    assert is_cut


async def test_an_invalid_stream_ends_the_inner_request() -> None:
    inner = Inner([b"data: nonsense\n\n", *chat_stream("a")], headers=[SSE])
    got, is_cut = await ask_cut(app_around(inner), "/generate", STREAMED)
    assert got.events[0]["error"]["code"] == "upstream_garbled"
    assert inner.failure is not None
    assert is_cut


async def test_a_stream_without_done_ends_with_its_body() -> None:
    got = await ask(app_around(Inner(chat_stream("a")[:-1], headers=[SSE])), "/generate", STREAMED)
    assert (got.events[-1], got.is_whole) == ("[DONE]", True)


async def test_comments_pass_at_once_in_event_streams_only() -> None:
    inner = Inner([b": waiting\n\n", *chat_stream("a")], headers=[SSE])
    assert (await ask(app_around(inner), "/generate", STREAMED)).pieces[0] == b": waiting\n\n"
    got = await ask(app_around(inner), "/summarize", {"text": "a", "stream": True})
    assert got.header(b"content-type") == b"application/x-ndjson"
    assert [json.loads(line) for line in got.body.splitlines()] == [{"piece": "a"}, {"is_whole": True}]


async def test_a_chunk_that_is_but_a_sign_of_life_becomes_a_comment() -> None:
    sign = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":null}]}\n\n'
    inner = Inner([sign, *chat_stream("a")], headers=[SSE])
    assert (await ask(app_around(inner), "/generate", STREAMED)).pieces[0].startswith(b":")


async def test_a_json_lines_stream_has_errors_as_lines() -> None:
    inner = Inner([*chat_stream("a")[:2], b'data: {"error":{"message":"gone"}}\n\n'], headers=[SSE])
    got = await ask(app_around(inner), "/summarize", {"text": "a", "stream": True})
    assert [json.loads(line) for line in got.body.splitlines()] == [{"piece": "a"}, {"problem": "gone"}]


async def test_a_whole_response_to_a_stream_request_is_translated() -> None:
    got = await ask(app_around(Inner([chat_answer()])), "/generate", STREAMED)
    assert (got.status, got.json["text"]) == (200, "Hello")


WHOLE = b": c\n\n" + b"".join(chat_stream("Grüße", "", "\n\n", "data: x", "\U0001f600")).replace(
    b"\n\n", b"\r\n\r\n", 2
)
EXPECTED: list[Any] = [
    *({"text": text} for text in ("Grüße", "\n\n", "data: x", "\U0001f600")),
    {"text": "", "finish_reason": "stop", "usage": USAGE, "model": "demo"},
    "[DONE]",
]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=60))
def test_splits_of_a_stream_make_no_difference(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    pieces = [WHOLE[start:end] for start, end in pairwise(edges)]
    got = asyncio.run(ask(app_around(Inner(pieces, headers=[SSE])), "/generate", STREAMED))
    assert got.events == EXPECTED
    assert got.body.startswith(b": c\n\n")


async def test_a_stream_waits_for_its_reader() -> None:
    """The inner application's `send` returns when the client's has: nothing is buffered in between."""
    inner = Inner(chat_stream("a", "b"), headers=[SSE])
    sent: list[Message] = []
    may_go_on = asyncio.Event()
    held = asyncio.Event()

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(STREAMED).encode()}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 2:
            held.set()
            await may_go_on.wait()

    progress: list[int] = []

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            await send(message)
            progress.append(1)

        await inner(scope, receive, counted)

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": [], "query_string": b""}
    task = asyncio.create_task(app_around(counting)(scope, receive, send))
    async with asyncio.timeout(10):
        await held.wait()
        await asyncio.sleep(0)
        assert len(progress) == 2  # the head and the empty first event; the third message is being sent
        may_go_on.set()
        await task
    assert sent[-1]["more_body"] is False


async def test_a_disconnect_reaches_the_inner_application() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": json.dumps(PROMPT).encode()},
        {"type": "http.disconnect"},
    ]
    seen: list[str] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(_: Message) -> None:
        raise AssertionError

    async def inner(_scope: Scope, receive: Receive, _send: Send) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": [], "query_string": b""}
    await app_around(inner)(scope, receive, send)
    assert seen == ["http.request", "http.disconnect"]
    messages[:] = [{"type": "http.disconnect"}]
    await app_around(inner)(scope, receive, send)
    assert len(seen) == 2  # disconnected before the end: no request is sent


# Adapters that break


class Broken(GenerateProtocol):
    """Fails in the method given."""

    name = "broken"
    route = "/broken"

    def __init__(self, where: str) -> None:
        self.where = where

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise ZeroDivisionError("a secret of the plug-in's")

    def create_prompt(self, request: GenerateRequest) -> str | Sequence[ChatMessage]:
        self._fail("prompt")
        return super().create_prompt(request)

    def from_openai(self, answer: Mapping[str, Any], request: GenerateRequest) -> Json:
        self._fail("answer")
        return {"nan": float("nan")} if self.where == "nan" else super().from_openai(answer, request)

    def from_openai_stream(self, request: GenerateRequest) -> StreamTranslator:
        stream, fail = super().from_openai_stream(request), self._fail

        class Stream(StreamTranslator):
            def event(self, chunk: Mapping[str, Any]) -> bytes:
                fail("event")
                return stream.event(chunk)

            def end(self) -> bytes:
                fail("end")
                return stream.end()

        return Stream()

    def create_error_response(self, error: ErrorDetail) -> tuple[int, Json]:
        self._fail("error")
        return (200, {}) if self.where == "status" else super().create_error_response(error)


@pytest.mark.parametrize("where", ["prompt", "answer", "nan"])
async def test_a_failing_adapter_is_a_500_and_a_traceback(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    got = await ask(app_around(Inner([chat_answer()]), Broken(where)), "/broken", PROMPT)
    assert (got.status, got.json["error"]["code"]) == (500, "protocol_failed")
    assert b"secret" not in got.body
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize("where", ["event", "end"])
async def test_an_adapter_failing_within_a_stream_cuts_it(where: str) -> None:
    inner = Inner(chat_stream("a"), headers=[SSE])
    got, is_cut = await ask_cut(app_around(inner, Broken(where)), "/broken", STREAMED)
    assert got.events[-1]["error"]["code"] == "protocol_failed"
    assert is_cut
    assert inner.failure is not None


@pytest.mark.parametrize("where", ["error", "status"])
async def test_an_adapter_that_cannot_format_an_error(where: str) -> None:
    got = await ask(app_around(Inner([b"{}"], 429), Broken(where)), "/broken", PROMPT)
    assert (got.status, got.json["error"]["code"]) == (500, "protocol_failed")


class Unstreamed(SummarizeProtocol):
    name = "unstreamed"
    route = "/unstreamed"

    def from_openai_stream(self, request: SummaryRequest) -> StreamTranslator:
        return super(SummarizeProtocol, self).from_openai_stream(request)


async def test_a_protocol_need_not_support_streaming() -> None:
    inner = Inner([chat_answer()])
    got = await ask(app_around(inner, Unstreamed()), "/unstreamed", {"text": "a", "stream": True})
    assert got.status == 422
    assert "'unstreamed' does not support streaming" in got.json["problem"]
    assert inner.scopes == []


async def test_exceptions_of_the_inner_application_are_raised() -> None:
    async def inner(*_: Any) -> None:
        raise OSError("its own")

    with pytest.raises(OSError, match="its own"):
        await ask(app_around(inner), "/generate", PROMPT)


@pytest.mark.parametrize(
    ("path", "method", "body", "status", "who"),
    [
        ("/generate", "GET", b"", 405, "generate"),
        ("/generate", "POST", b"{", 400, "generate"),
        ("/generate", "POST", b"{}", 422, "generate"),
        ("/chat/completions", "POST", b'{"model": "liner"}', 422, "lines"),
    ],
)
async def test_refused_requests_are_in_the_access_log(
    caplog: pytest.LogCaptureFixture, path: str, method: str, body: bytes, status: int, who: str
) -> None:
    inner = Inner()
    with caplog.at_level(logging.INFO, "berth.access"):
        headers = [(b"x-request-id", b"mine")]
        got = await ask(app_around(inner), path, body, method=method, headers=headers)
    assert (got.status, inner.scopes) == (status, [])
    (line,) = [record.getMessage() for record in caplog.records if record.name == "berth.access"]
    assert line.startswith(f'127.0.0.1 "{method} {path}" {status} ')
    assert line.endswith(f" ms mine, refused by {who}")


async def test_forwarded_requests_are_logged_by_the_inner_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "berth.access"):
        await ask(app_around(Inner([chat_answer()])), "/generate", PROMPT)
        await ask(app_around(Inner([b"{}"])), "/v1/embeddings", b"{}")
    assert caplog.records == []


async def test_stopping_an_inner_task_group_is_not_a_failure() -> None:
    """The inner application may send from a task group, which wraps what `send` raises."""
    inner = Inner([b"data: {broken\n\n"], headers=[SSE])

    async def grouped(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(inner(scope, receive, send))

    got, is_cut = await ask_cut(app_around(grouped), "/generate", STREAMED)
    assert is_cut and not got.is_whole
    assert got.events[-1]["error"]["code"] == "upstream_garbled"
