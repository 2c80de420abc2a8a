"""A few seconds of the soak with fast engines, and tests that the soak detects violations."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.soak.client import Outcome, send
from tests.soak.report import broken_promises, quantile, shown, table
from tests.soak.requests import Request
from tests.soak.scenario import Engine, Plan, run
from tests.soak.watch import EventWatch, MemoryWatch, below


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_while_models_take_turns_in_memory(tmp_path: Path) -> None:
    result = run(Plan(Engine.FAKE, seconds=5.0, num_clients=8, calibration_s=1.0), tmp_path, lambda _: None)
    broken = broken_promises(result)
    assert not broken, f"{table(result)}\n{shown(broken)}"


def chunk(model: str = "m", **fields: Any) -> dict[str, Any]:
    return {"model": model, "choices": [{"text": "a", "finish_reason": "length"}], **fields}


def sse(chunks: Iterable[dict[str, Any]], end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


USAGE = {"completion_tokens": 2}
ERROR = {"error": {"message": "it broke"}}


@pytest.mark.parametrize(
    ("is_stream", "status", "answer", "problem"),
    [
        (False, 200, json.dumps(chunk(usage=USAGE)), None),
        (False, 503, "no room", "503 no room"),
        (False, 200, json.dumps(chunk("other", usage=USAGE)), "other answered"),
        (False, 200, json.dumps(chunk(usage={"completion_tokens": 1})), "1 arrived"),
        (True, 200, sse([chunk(), chunk(usage=USAGE)]), None),
        (True, 200, ": waiting\n\n" + sse([chunk(usage=USAGE)]), None),
        (True, 503, "no room", "503 no room"),
        (True, 200, sse([chunk("other")]), "other answered"),
        (True, 200, sse([chunk(usage=USAGE)], end=""), "did not end with"),
        (True, 200, sse([chunk(usage=USAGE)], end="data: [DONE]\n\n" * 2), "did not end with"),
        (True, 200, sse([]), "None arrived"),
        (True, 200, sse([chunk(), ERROR]), "it broke"),
    ],
)
async def test_an_incorrect_response_is_a_failure(
    is_stream: bool, status: int, answer: str, problem: str | None
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=answer))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        attempt = await send(http, Request("m", False, is_stream, 2, "a"))
    assert attempt.outcome is (Outcome.ANSWERED if problem is None else Outcome.FAILED)
    assert (problem or "") in attempt.problem


async def test_a_client_that_disconnects_on_purpose_has_not_failed() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=sse([chunk(), chunk()], end="")))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        attempt = await send(http, Request("m", True, True, 2, "a", disconnects_after=2))
    assert attempt.outcome is Outcome.LEFT


async def test_violations_in_the_events_are_reported() -> None:
    def event(number: int, status: str, in_flight: int) -> str:
        data = {"instance_id": "x", "status": status, "in_flight": in_flight}
        return f"event: instance.state\ndata: {json.dumps(data)}\nid: {number}\n\n"

    text = event(1, "running", 3) + event(2, "stopping", 3) + event(3, "stopped", 0)
    text += event(4, "sleeping", 1) + event(6, "failed", 0)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=text))
    watch = EventWatch()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await watch.follow(http)
    assert watch.drains == 1
    assert [problem.split(":")[0] for problem in watch.problems] == [
        "an engine that was in use is sleeping",
        "event 4 is followed by 6",
        "an engine failed",
    ]


def test_memory_over_the_budget_is_reported() -> None:
    script = "import sys; held = bytearray(b'x') * 60_000_000; print(flush=True); sys.stdin.read()"
    with psutil.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        for budget, is_over in ((50_000_000, True), (10**12, False)):
            watch = MemoryWatch(below(psutil.Process().pid), budget, interval_s=0.01)
            with watch.running():
                while len(watch.held_bytes) < 3:
                    time.sleep(0.01)
            assert bool(watch.over) is is_over
            assert watch.peak_bytes > 60_000_000
        child.stdin.close()


def test_quantiles() -> None:
    assert [quantile([1, 2, 3, 4], part) for part in (0, 0.5, 0.51, 1)] == [1, 2, 3, 4]
    assert quantile([], 0.5) == 0.0
