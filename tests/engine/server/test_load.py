"""Many concurrent requests: order, waiting, refusals, and that nothing is left over."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.core.batch import Batch
from tests.engine.server.serving import WAIT_S, Running, fake_core, running, wait_until
from tests.engine.server.test_ops import metrics
from tests.engine.server.test_streams import COMPLETIONS, Valve, events

BODY: dict[str, Any] = {"prompt": "abc", "max_tokens": 3, "ignore_eos": True, "seed": 1}


@contextmanager
def held(fake_model: Path, valve: Callable[[Batch], None], **options: Any) -> Iterator[Running]:
    with running(
        fake_model, fake_core(fake_model, before=valve), shutdown_timeout_s=0.0, **options
    ) as server:
        try:
            yield server
        finally:
            if isinstance(valve, Valve):
                valve.open()


def post(server: Running, **fields: Any) -> httpx.Response:
    with server.http() as client:
        return client.post(COMPLETIONS, json={**BODY, **fields})


def test_a_full_queue_refuses_and_later_accepts_requests(fake_model: Path) -> None:
    """Two run, two wait, and the fifth is refused; the accepted ones are answered."""
    valve = Valve()
    with (
        held(fake_model, valve, max_num_seqs=2, max_waiting=2) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        admitted = [pool.submit(post, server) for _ in range(4)]
        wait_until(lambda: server.engine.num_unfinished == 4)
        for streamed in (False, True):
            refused = post(server, stream=streamed)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert "4" in error["message"]
        valve.open()
        assert [answer.result().status_code for answer in admitted] == [200] * 4
        assert post(server).status_code == 200


def test_a_disconnect_frees_a_place_at_once(fake_model: Path) -> None:
    """On a full server, a disconnect of a waiting or running request frees its place for the next one."""
    valve = Valve()
    with held(fake_model, valve, max_num_seqs=1, max_waiting=1) as server:
        raw = b'{"prompt": "abc", "max_tokens": 100, "ignore_eos": true}'
        head = (
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(raw)}\r\n\r\n"
        ).encode()
        leaving = [socket.create_connection(("127.0.0.1", server.port), WAIT_S) for _ in range(2)]
        for connection in leaving:
            connection.sendall(head + raw)
        wait_until(lambda: server.engine.num_unfinished == 2)
        assert post(server).status_code == 429
        for connection in leaving:
            connection.close()
        wait_until(lambda: metrics(server).get("vllm:request_success_totalabort") == 2)
        valve.let_pass(2)  # the current step, and one that notices the disconnects
        wait_until(lambda: server.engine.num_unfinished == 0)
        valve.open()
        assert post(server).status_code == 200
        server.wait_idle()


def test_requests_run_in_the_order_of_their_priority(fake_model: Path) -> None:
    """While one request fills the server, three wait; they run in the order of priority, lowest first."""
    valve = Valve()
    ran: list[str] = []

    def before(batch: Batch) -> None:
        ran.extend(sequence.request_id.partition(":")[0] for sequence in batch.sequences)
        valve(batch)

    def has_unfinished(count: int) -> bool:
        return server.engine.num_unfinished == count

    with held(fake_model, before) as server, ThreadPoolExecutor(4) as pool:
        try:
            responses = []
            for count, (name, priority) in enumerate([("first", 0), ("5", 5), ("-1", -1), ("0", 0)], start=1):
                fields = {"prompt": name * 30, "n": 8, "priority": priority, "request_id": name}
                responses.append(pool.submit(post, server, **fields))
                wait_until(partial(has_unfinished, 8 * count))
        finally:
            valve.open()
        assert [response.result().status_code for response in responses] == [200] * 4
    assert list(dict.fromkeys(ran)) == ["first", "-1", "0", "5"]


def test_streams_continue_while_a_long_prompt_is_prefilled(fake_model: Path) -> None:
    """A running stream gets a token in every step, whatever else the steps do.

    Steps are counted, not timed: each must yield a token while the prompt, longer than a step's budget of 64
    tokens, is read in chunks.
    """
    valve = Valve()
    chunks: list[int] = []

    def before(batch: Batch) -> None:
        chunks.append(max(len(sequence.input.token_ids) for sequence in batch.sequences))
        valve(batch)

    with held(fake_model, before) as server, ThreadPoolExecutor(1) as pool:
        try:
            body = {**BODY, "max_tokens": 100, "stream": True}
            valve.let_pass(1)
            with server.http() as client, client.stream("POST", COMPLETIONS, json=body) as response:
                stream = events(response)
                next(stream)
                long = pool.submit(post, server, prompt="z" * 190)
                wait_until(lambda: server.engine.num_unfinished == 2)
                for _ in range(12):
                    valve.let_pass(1)
                    assert next(stream)["choices"][0]["finish_reason"] is None
                assert len([size for size in chunks if size > 1]) >= 4, "1 prompt, and 190 tokens in 3 chunks"
                assert max(chunks) < 64
                valve.open()
                *_, done = stream
            assert done == "[DONE]"
            assert long.result().status_code == 200
        finally:
            valve.open()


def test_a_failed_request_does_not_disturb_its_batch(fake_server: Running) -> None:
    """Valid and failing requests at once: the valid ones have the same output as alone."""
    alone = post(fake_server, max_tokens=30).json()["choices"][0]["text"]
    wrong: list[dict[str, Any]] = [{"temperature": -1}, {"prompt": []}, {"prompt": "a" * 500}, {"n": 0}]

    def ask(number: int) -> httpx.Response:
        return post(fake_server, **({"max_tokens": 30} if number % 2 else wrong[number // 2 % len(wrong)]))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(32)))
    assert [answer.status_code for answer in answers[::2]] == [400] * 16
    assert {answer.json()["choices"][0]["text"] for answer in answers[1::2]} == {alone}


def test_answers_do_not_depend_on_the_batch(fake_server: Running) -> None:
    alone = [post(fake_server, prompt="abc" * n, max_tokens=20).json()["choices"] for n in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: post(fake_server, prompt="abc" * n, max_tokens=20), range(1, 9)))
    assert [answer.json()["choices"] for answer in together] == alone


@pytest.mark.anyio
async def test_a_thousand_requests_leave_nothing_behind(fake_model: Path) -> None:
    """Whole and streamed, finished and abandoned: no sequence, block or task is left."""
    num_requests, at_once = 1000, 50
    with running(fake_model, fake_core(fake_model)) as server:
        num_threads = threading.active_count()
        limits = httpx.Limits(max_connections=at_once)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=WAIT_S, trust_env=False, limits=limits
        ) as client:
            slots = asyncio.Semaphore(at_once)
            statuses: list[int] = []

            async def ask(number: int) -> None:
                body = {**BODY, "prompt": f"abc{number}", "n": 1 + number % 2, "stream": number % 3 == 0}
                async with slots, client.stream("POST", COMPLETIONS, json=body) as response:
                    if number % 5 != 0:
                        await response.aread()
                    statuses.append(response.status_code)

            async with asyncio.TaskGroup() as group:
                for number in range(num_requests):
                    group.create_task(ask(number))
        assert statuses == [200] * num_requests
        server.wait_idle()
        values = metrics(server)
        ended = sum(value for name, value in values.items() if "request_success_total" in name)
        assert ended == num_requests * 1.5
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert values[f"vllm:{name}"] == 0
        assert threading.active_count() <= num_threads + 1  # the loop's thread pool may have grown
