"""Aborting requests by id, and unsupported paths."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.server.app.unsupported_routes import UNSUPPORTED_ROUTES
from engine.server.http.request_ids import choose_request_id, new_sequence_id, sequence_ids_of, set_request_id
from engine.server.http.tenants import DEFAULT_TENANT
from tests.engine.server.serving import Running, fake_core, running, wait_until
from tests.engine.server.test_streams import CHAT, COMPLETIONS, Valve, events

ABORT = "/inference/v1/abort_requests"
BODY: dict[str, Any] = {"prompt": "abc", "max_tokens": 100, "ignore_eos": True, "seed": 1}


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


def abort(server: Running, *ids: str, path: str = ABORT) -> int:
    """The number of aborted sequences."""
    with server.http() as client:
        answer = client.post(path, json={"request_ids": ids})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "aborted"
    number: int = answer.json()["aborted"]
    return number


@pytest.mark.parametrize("path", [ABORT, "/abort_requests"])
@pytest.mark.parametrize("by", ["the id asked for", "the id of the answer"])
def test_an_aborted_stream_ends_with_its_partial_output(
    held_server: Running, valve: Valve, path: str, by: str
) -> None:
    valve.let_pass(3)
    with (
        held_server.http() as client,
        client.stream("POST", COMPLETIONS, json={**BODY, "stream": True, "request_id": "mine"}) as response,
    ):
        stream = events(response)
        first = next(stream)
        assert abort(held_server, "mine" if by == "the id asked for" else first["id"], path=path) == 1
        valve.open()
        *_, last, done = stream
    assert done == "[DONE]"
    assert last["choices"][0]["finish_reason"] == "abort"
    held_server.wait_idle()


@pytest.mark.parametrize("number", [1, 3])
def test_an_aborted_response_has_its_partial_output(held_server: Running, valve: Valve, number: int) -> None:
    answers: list[Any] = []

    def ask() -> None:
        with held_server.http() as client:
            headers = {"X-Request-Id": "by-header"}
            answers.append(client.post(COMPLETIONS, json={**BODY, "n": number}, headers=headers))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: held_server.engine.num_unfinished == number)
    valve.let_pass(4)
    wait_until(lambda: held_server.engine.stats().generation_tokens >= number)
    assert abort(held_server, "by-header") == number
    valve.open()
    asking.join()
    assert answers[0].status_code == 200
    choices = answers[0].json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["abort"] * number
    assert 0 < answers[0].json()["usage"]["completion_tokens"] < 100 * number


def test_an_abort_does_not_affect_other_requests(held_server: Running, valve: Valve) -> None:
    texts: dict[str, str] = {}

    def ask(name: str) -> None:
        with held_server.http() as client:
            answer = client.post(COMPLETIONS, json={**BODY, "max_tokens": 20, "request_id": name})
        texts[name] = answer.json()["choices"][0]["finish_reason"]

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    wait_until(lambda: held_server.engine.num_unfinished == 3)
    assert abort(held_server, "two", "never-heard-of") == 1
    valve.open()
    for thread in threads:
        thread.join()
    assert texts == {"one": "length", "two": "abort", "three": "length"}


def test_aborting_an_unknown_id_aborts_nothing(fake_server: Running) -> None:
    assert abort(fake_server, "never-heard-of") == 0
    with fake_server.http() as client:
        bodies: list[dict[str, Any]] = [{}, *({"request_ids": wrong} for wrong in ([], "one", [1]))]
        for body in bodies:
            answer = client.post(ABORT, json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"].startswith("request_ids")


def test_ids_of_sequences() -> None:
    set_request_id("made", is_final=False)
    assert choose_request_id("asked") == "asked"
    mine = new_sequence_id()
    set_request_id("given", is_final=True)
    assert choose_request_id("asked") == "given"
    others = [new_sequence_id(), new_sequence_id()]
    assert len({mine, *others}) == 3
    assert sequence_ids_of(["asked"], [mine, *others], DEFAULT_TENANT) == [mine]
    assert sequence_ids_of(["chatcmpl-given"], [mine, *others], DEFAULT_TENANT) == others
    assert sequence_ids_of(["resp_asked", "given"], [mine, *others], DEFAULT_TENANT) == [mine, *others]
    assert sequence_ids_of(["as", "", "ask:ed"], [mine, *others], DEFAULT_TENANT) == []
    set_request_id("with:colon", is_final=True)
    assert sequence_ids_of(["with"], [new_sequence_id()], DEFAULT_TENANT) == []


@pytest.mark.parametrize(("method", "path"), list(UNSUPPORTED_ROUTES), ids=lambda word: word)
def test_unsupported_paths_return_the_reason(fake_server: Running, method: str, path: str) -> None:
    with fake_server.http() as client:
        answer = client.request(method, path)
    assert answer.status_code == 501
    assert path in answer.json()["error"]["message"]


def test_chat_ids_work_like_completion_ids(held_server: Running, valve: Valve) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 50, "ignore_eos": True}
    valve.let_pass(2)
    with (
        held_server.http() as client,
        client.stream("POST", CHAT, json={**body, "stream": True, "request_id": "talk"}) as response,
    ):
        stream = events(response)
        assert next(stream)["id"] == "chatcmpl-talk"
        assert abort(held_server, "chatcmpl-talk") == 1
        valve.open()
        *_, last, _ = stream
    assert last["choices"][0]["finish_reason"] == "abort"
