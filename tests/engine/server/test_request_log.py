"""The request log: one line per request, throughput, and no prompts."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.core.types import EngineStats
from engine.server.http.request_log import describe_throughput, log_throughput
from tests.engine.server.serving import Running, fake_core, running, wait_until
from tests.engine.server.test_streams import Valve

SECRET = "a secret word"
LINE = re.compile(
    r'"(?P<what>POST \S+)" (?P<status>\d+|-) id=(?P<id>\S+)'
    r"( prompt=(?P<prompt>\d+) cached=(?P<cached>\d+) output=(?P<output>\d+)"
    r"( ttft=(?P<ttft>[\d.]+)s)? finish=(?P<finish>\S+))? time=(?P<time>[\d.]+)s"
)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The logged request lines so far."""

    class Told(list[str]):
        def __iter__(self) -> Iterator[str]:
            return iter([one.getMessage() for one in caplog.records if one.name == "engine.requests"])

        def __len__(self) -> int:
            return len(list(iter(self)))

        def __getitem__(self, index: Any) -> Any:
            return list(iter(self))[index]

    with caplog.at_level(logging.INFO, "engine.requests"):
        yield Told()


def parts_of(lines: list[str], number: int) -> dict[str, str]:
    """The parts of the line with this number, once it is logged, which is after the response."""
    wait_until(lambda: len(lines) > number)
    match = LINE.fullmatch(lines[number])
    assert match is not None, lines[number]
    return match.groupdict()


@pytest.mark.parametrize("stream", [False, True])
def test_each_request_is_one_line_without_its_text(
    fake_server: Running, lines: list[str], stream: bool
) -> None:
    messages = [{"role": "user", "content": SECRET}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 5, "ignore_eos": True}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 5, "ignore_eos": True, "n": 2}),
        ("/v1/responses", {"input": SECRET, "max_output_tokens": 5}),
        ("/v1/messages", {"messages": messages, "max_tokens": 5}),
    ]
    with fake_server.http() as client:
        for number, (path, body) in enumerate(bodies):
            name = f"mine-{number}"
            answer = client.post(path, json={**body, "stream": stream}, headers={"x-request-id": name})
            assert answer.status_code == 200, answer.text
            logged = parts_of(lines, number)
            assert (logged["what"], logged["status"], logged["id"]) == (f"POST {path}", "200", name)
            assert int(logged["prompt"]) >= len(SECRET)
            assert 0 <= int(logged["output"]) <= (10 if body.get("n") else 5)
            assert logged["finish"] in ("length", "stop", "stop,length", "length,stop")
            assert 0 <= float(logged["ttft"]) <= float(logged["time"])
        assert len(lines) == len(bodies)
    assert SECRET not in "".join(lines)
    if not stream:
        assert parts_of(lines, 0)["output"] == "5"


def test_cached_tokens_are_logged(fake_server: Running, lines: list[str]) -> None:
    with fake_server.http() as client:
        for _ in range(2):
            client.post("/v1/completions", json={"prompt": "again " * 20, "max_tokens": 1})
    assert int(parts_of(lines, 1)["cached"]) > 0


def test_refusals_have_a_line_and_probes_have_none(fake_server: Running, lines: list[str]) -> None:
    with fake_server.http() as client:
        for path in ("/health", "/metrics", "/v1/models", "/load"):
            client.get(path)
        client.post("/ping")
        client.post("/v1/completions", json={"prompt": "a", "model": "other"})
        client.post("/no%0Awhere", json={})
        client.post("/tokenize", json={"prompt": SECRET})
    wait_until(lambda: len(lines) == 3)
    assert [parts_of(lines, number)["status"] for number in range(3)] == ["404", "404", "200"]
    assert [parts_of(lines, number)["what"] for number in range(3)] == [
        "POST /v1/completions",
        "POST /no%0Awhere",
        "POST /tokenize",
    ]
    assert parts_of(lines, 0)["prompt"] is None


def test_a_disconnect_is_logged(fake_model: Path, lines: list[str]) -> None:
    valve = Valve()
    with running(fake_model, fake_core(fake_model, before=valve)) as server:
        body = {"prompt": "a", "max_tokens": 100, "ignore_eos": True, "stream": True}
        with server.http() as client:
            valve.let_pass(3)
            with client.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_lines())
        assert parts_of(lines, 0)["finish"] == "abort"
        valve.open()


def test_a_background_response_is_logged_when_it_ends(fake_server: Running, lines: list[str]) -> None:
    with fake_server.http() as client:
        client.post("/v1/responses", json={"input": "a", "background": True, "max_output_tokens": 5})
    wait_until(lambda: any("output=" in line for line in lines))


def test_it_can_be_switched_off(fake_model: Path, lines: list[str]) -> None:
    with running(fake_model, fake_core(fake_model), log_requests=False) as server, server.http() as client:
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    assert len(lines) == 0


STATS = EngineStats(
    num_requests_running=2,
    num_requests_waiting=1,
    kv_cache_usage=0.123,
    prefix_cache_queries=300,
    prefix_cache_hits=150,
    prompt_tokens=400,
    generation_tokens=50,
)


def test_throughput_is_logged_in_vllms_format() -> None:
    before = EngineStats(prompt_tokens=300, prefix_cache_queries=100, prefix_cache_hits=100)
    assert describe_throughput(before, STATS, 10.0, generates=True) == (
        "Avg prompt throughput: 10.0 tokens/s, Avg generation throughput: 5.0 tokens/s, Running: 2 reqs, "
        "Waiting: 1 reqs, KV cache usage: 12.3%, Prefix cache hit rate: 25.0%"
    )
    assert describe_throughput(before, STATS, 10.0, generates=False) == (
        "Avg prompt throughput: 10.0 tokens/s, Running: 2 reqs, Waiting: 1 reqs"
    )


def test_nothing_is_logged_while_idle() -> None:
    idle = EngineStats(prompt_tokens=400, generation_tokens=50)
    assert describe_throughput(idle, idle, 10.0, generates=True) is None


async def test_throughput_is_logged_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    logged = [EngineStats(), STATS, STATS, EngineStats(prompt_tokens=400, generation_tokens=50)]
    reads = 0
    enough = asyncio.Event()

    def read() -> EngineStats:
        nonlocal reads
        reads += 1
        if reads == 20:
            enough.set()
        return logged[min(reads, len(logged)) - 1]

    with caplog.at_level(logging.INFO, "engine.stats"):
        telling = asyncio.create_task(log_throughput(read, generates=True, interval_s=0.001))
        await enough.wait()
        telling.cancel()
    assert len([one for one in caplog.records if one.name == "engine.stats"]) == 2
