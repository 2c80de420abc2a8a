"""Streams on the wire: their bytes, errors in them, and client disconnects."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.core.batch import Batch
from tests.engine.server.serving import WAIT_S, Running, fake_core, running, wait_until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Valve:
    """Allows the runner a given number of steps, and no more until released."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.is_open = False

    def __call__(self, batch: Batch) -> None:
        if self.failure is not None:
            raise self.failure
        if not self.is_open:
            assert self._steps.acquire(timeout=WAIT_S)

    def let_pass(self, number: int = 1) -> None:
        self._steps.release(number)

    def open(self) -> None:
        self.is_open = True
        self._steps.release()


@pytest.fixture
def valve() -> Valve:
    return Valve()


@pytest.fixture
def held_server(fake_model: Path, valve: Valve) -> Iterator[Running]:
    """A server whose engine steps only when the test allows it."""
    with running(fake_model, fake_core(fake_model, before=valve), shutdown_timeout_s=0.0) as server:
        try:
            yield server
        finally:
            valve.open()


def events(response: httpx.Response) -> Iterator[Any]:
    """The data of each event as parsed JSON; "[DONE]" unchanged."""
    for line in response.iter_lines():
        assert line == "" or line.startswith("data: ")
        if line:
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


def post_stream(server: Running, path: str, **body: Any) -> list[Any]:
    with server.http() as client, client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-accel-buffering"] == "no"
        return list(events(response))


def test_the_grammar_of_a_chat(fake_server: Running) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    *chunks, done = post_stream(fake_server, CHAT, messages=messages, seed=1, max_tokens=40, ignore_eos=True)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    for chunk in chunks:
        assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert (chunk["object"], chunk["model"]) == ("chat.completion.chunk", "fake")
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert choices[-1] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
    }


def test_the_grammar_of_a_completion(fake_server: Running) -> None:
    *chunks, done = post_stream(fake_server, COMPLETIONS, prompt="a", seed=1, max_tokens=9, ignore_eos=True)
    assert done == "[DONE]"
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        [choice] = chunk["choices"]
        assert {"index", "text", "logprobs", "finish_reason"} <= set(choice)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


def test_usage_comes_last_with_no_choices(fake_server: Running) -> None:
    body = {"prompt": "abc", "seed": 1, "max_tokens": 9, "ignore_eos": True}
    *chunks, last, _ = post_stream(fake_server, COMPLETIONS, **body, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 3
    assert last["usage"]["completion_tokens"] == 9
    assert last["usage"]["total_tokens"] == 12


def test_usage_can_be_in_every_chunk(fake_server: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, _ = post_stream(fake_server, COMPLETIONS, prompt="abc", seed=1, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"]


def test_every_choice_has_one_role_and_one_end(fake_server: Running) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    *chunks, _ = post_stream(fake_server, CHAT, messages=messages, seed=1, n=3, max_tokens=15)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in range(3):
        mine = [choice for choice in choices if choice["index"] == index]
        assert [number for number, choice in enumerate(mine) if "role" in choice["delta"]] == [0]
        assert [number for number, choice in enumerate(mine) if choice["finish_reason"]] == [len(mine) - 1]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_each_token_is_sent_as_soon_as_it_is_generated(held_server: Running, valve: Valve, path: str) -> None:
    """Even if it has no text, such as part of a character, so that clients see progress."""
    body = {"seed": 1, "stream": True, "max_tokens": 20, "ignore_eos": True}
    ask = {"prompt": "a"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    with held_server.http() as client:
        valve.let_pass(1)
        with client.stream("POST", path, json={**body, **ask}) as response:
            stream = events(response)
            if path == CHAT:
                assert next(stream)["choices"][0]["delta"]["role"] == "assistant"
            texts = []
            for _ in range(19):
                choice = next(stream)["choices"][0]  # while the engine is stopped
                texts.append(choice["text"] if path == COMPLETIONS else choice["delta"]["content"])
                valve.let_pass(1)
            *_, done = stream
    assert done == "[DONE]"
    assert "" in texts
    assert any(texts)


def test_no_event_has_an_incomplete_character(fake_server: Running) -> None:
    """The fake model generates bytes of multi-byte characters in any order."""
    for seed in range(20):
        body: dict[str, Any] = {"prompt": "a", "seed": seed, "max_tokens": 60, "ignore_eos": True}
        *chunks, _ = post_stream(fake_server, COMPLETIONS, **body)
        with fake_server.http() as client:
            whole = client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


def test_an_error_before_the_first_token_has_a_status(held_server: Running, valve: Valve) -> None:
    valve.failure = RuntimeError("no such device")
    with held_server.http() as client:
        response = client.post(COMPLETIONS, json={"prompt": "a", "stream": True})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "generation_failed"
    assert "no such device" in response.json()["error"]["message"]


def test_an_error_in_a_stream_is_an_event_and_closes_the_connection(
    held_server: Running, valve: Valve
) -> None:
    body = {"prompt": "a", "stream": True, "max_tokens": 50, "ignore_eos": True}
    received = []
    with held_server.http() as client:
        valve.let_pass(3)
        with (
            client.stream("POST", COMPLETIONS, json=body) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            for event in events(response):
                received.append(event)
                if len(received) == 1:
                    valve.failure = RuntimeError("the device is gone")
                    valve.let_pass()
    assert response.status_code == 200
    assert "the device is gone" in received[-1]["error"]["message"]
    assert "[DONE]" not in received
    valve.failure = None
    held_server.wait_idle()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("steps", [0, 4])
def test_a_disconnect_ends_the_request(
    held_server: Running, valve: Valve, streamed: bool, number: int, steps: int
) -> None:
    """Before the first token (no steps yet) or later; its blocks are freed at the next step."""
    body = {"prompt": "abc", "stream": streamed, "max_tokens": 100, "ignore_eos": True, "n": number}
    raw = json.dumps(body).encode()
    request = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n"
    ).encode() + raw
    with socket.create_connection(("127.0.0.1", held_server.port), WAIT_S) as connection:
        connection.sendall(request)
        wait_until(lambda: held_server.engine.num_unfinished == number)
        if steps:
            valve.let_pass(steps)
        if streamed and steps:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    with held_server.http() as client:
        wait_until(
            lambda: f'finished_reason="abort",model_name="fake"}} {number}.0' in client.get("/metrics").text
        )
    valve.let_pass(2)  # the current step, and one more to be sure that it is the last
    held_server.wait_idle()


def test_a_connection_serves_one_request_after_the_other(fake_server: Running) -> None:
    with fake_server.http(limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(3):
            with client.stream("POST", COMPLETIONS, json={"prompt": "a", "stream": True}) as response:
                *_, done = events(response)
            assert done == "[DONE]"
            assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200
