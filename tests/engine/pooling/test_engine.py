"""The pooling thread and the event loop: batches, failures, cancellations, shutdown. The runner is a fake."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from engine.config import EngineConfig
from engine.core.sleep import ALL_PARTS, MemoryUsage, Part, SleepMode
from engine.errors import DeviceLost, EngineAsleep, EngineDead, InvalidRequest, RequestFailed
from engine.pooling.batcher import Batcher
from engine.pooling.engine import PoolingEngine
from engine.pooling.plan import PoolingPlan, read_pooling_plan
from engine.pooling.types import PoolingRequest
from tests.engine.pooling.tiny_poolers import make_pooler
from tests.engine.server.serving import running, wait_until

WAIT_S = 30


@dataclass
class FakeRunner:
    """The value of an input is its first token. `before` runs in the thread, before each batch."""

    before: Callable[[Sequence[PoolingRequest]], None] = lambda batch: None
    batches: list[int] = field(default_factory=list)
    sleeps: list[object] = field(default_factory=list)  # levels, and parts that were woken

    def sleep(self, level: int) -> None:
        self.sleeps.append(level)

    def wake_up(self, parts: Set[Part]) -> None:
        self.sleeps.append(parts)

    @property
    def memory(self) -> MemoryUsage:
        return MemoryUsage(device="cpu", weights=len(self.sleeps), kv_cache=0)

    def run(self, batch: Sequence[PoolingRequest]) -> list[array[float]]:
        self.before(batch)
        self.batches.append(len(batch))
        return [array("f", [request.token_ids[0]]) for request in batch]


@dataclass
class FakeCore:
    runner: FakeRunner
    batcher: Batcher = field(default_factory=lambda: Batcher(max_tokens=8, max_requests=4))


class Gate:
    """Holds the thread before a batch until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, batch: Sequence[PoolingRequest]) -> None:
        self.reached.set()
        assert self._open.wait(WAIT_S)

    def open(self) -> None:
        self._open.set()


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pooler("bert", tmp_path_factory.mktemp("planned"))


@pytest.fixture(scope="session")
def plan(directory: Path) -> PoolingPlan:
    return read_pooling_plan(EngineConfig(model=directory))


@asynccontextmanager
async def started(plan: PoolingPlan, runner: FakeRunner) -> AsyncIterator[PoolingEngine]:
    engine = PoolingEngine(lambda: FakeCore(runner), plan)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.shutdown(WAIT_S)


def requests(*tokens: int, length: int = 1) -> list[PoolingRequest]:
    return [
        PoolingRequest(request_id=f"r{token}", token_ids=[token] * length, arrival_time=0.0)
        for token in tokens
    ]


async def test_values_come_in_order(plan: PoolingPlan) -> None:
    runner = FakeRunner()
    async with started(plan, runner) as engine:
        values = await engine.pool(requests(5, 6, 7, 8, 9))
        assert [value.tolist() for value in values] == [[5], [6], [7], [8], [9]]
        assert engine.num_unfinished == 0
        assert engine.stats().prompt_tokens == 5
    assert runner.batches == [4, 1]


async def test_callers_share_batches(plan: PoolingPlan) -> None:
    gate = Gate()
    runner = FakeRunner(before=gate)
    async with started(plan, runner) as engine:
        first = asyncio.create_task(engine.pool(requests(1)))
        await asyncio.to_thread(gate.reached.wait, WAIT_S)
        others = [asyncio.create_task(engine.pool(requests(token))) for token in (2, 3, 4)]
        await asyncio.sleep(0)
        assert engine.num_unfinished == 4
        gate.open()
        values = await asyncio.gather(first, *others)
    assert [value.tolist() for [value] in values] == [[1], [2], [3], [4]]
    assert runner.batches == [1, 3]


async def test_a_cancelled_request_does_not_run(plan: PoolingPlan) -> None:
    gate = Gate()
    runner = FakeRunner(before=gate)
    async with started(plan, runner) as engine:
        first = asyncio.create_task(engine.pool(requests(1)))
        await asyncio.to_thread(gate.reached.wait, WAIT_S)
        leaver = asyncio.create_task(engine.pool(requests(2, 3)))
        stays = asyncio.create_task(engine.pool(requests(4)))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.wait([leaver])
        assert engine.num_unfinished == 2
        gate.open()
        await asyncio.gather(first, stays)
    assert runner.batches == [1, 1]


async def test_a_pooling_engine_sleeps_and_wakes_up(plan: PoolingPlan) -> None:
    """Pending requests are aborted or awaited, new ones refused, and afterwards it works as before."""
    for mode in SleepMode:
        gate = Gate()
        runner = FakeRunner(before=gate)
        async with started(plan, runner) as engine:
            asked = asyncio.create_task(engine.pool(requests(1)))
            await asyncio.to_thread(gate.reached.wait, WAIT_S)
            asleep = asyncio.create_task(engine.sleep_controller.sleep(2, mode))
            await asyncio.sleep(0)
            with pytest.raises(EngineAsleep, match="falling asleep"):
                await engine.pool(requests(2))
            assert runner.sleeps == [], "not while a batch runs"
            gate.open()
            await asleep
            assert (runner.sleeps, engine.stats().sleep_level, engine.memory.weights) == ([2], 2, 1)
            if mode is SleepMode.WAIT:
                assert [values.tolist() for values in await asked] == [[1]]
            else:
                with pytest.raises(RequestFailed, match="aborted"):
                    await asked
            with pytest.raises(EngineAsleep, match="weights, kv_cache"):
                await engine.pool(requests(2))
            await engine.sleep_controller.wake_up()
            assert runner.sleeps == [2, ALL_PARTS]
            assert [values.tolist() for values in await engine.pool(requests(2))] == [[2]]


async def test_an_input_that_fails_fails_alone(plan: PoolingPlan) -> None:
    def fail(batch: Sequence[PoolingRequest]) -> None:
        if any(request.token_ids[0] == 13 for request in batch):
            raise ValueError("not thirteen")

    async with started(plan, FakeRunner(before=fail)) as engine:
        good, bad = await asyncio.gather(
            engine.pool(requests(1, 2)), engine.pool(requests(13)), return_exceptions=True
        )
        assert isinstance(good, list)
        assert isinstance(bad, RequestFailed)
        assert "not thirteen" in str(bad)
        assert len(await engine.pool(requests(1))) == 1


async def test_an_abort_by_id(plan: PoolingPlan) -> None:
    gate = Gate()
    async with started(plan, FakeRunner(before=gate)) as engine:
        first = asyncio.create_task(engine.pool(requests(1)))
        await asyncio.to_thread(gate.reached.wait, WAIT_S)
        engine.abort("r1")
        engine.abort("nobody")
        with pytest.raises(RequestFailed, match="aborted"):
            await first
        assert engine.num_unfinished == 0
        gate.open()


async def test_an_input_that_can_not_run_is_refused_at_once(plan: PoolingPlan) -> None:
    async with started(plan, FakeRunner()) as engine:
        for length in (0, plan.max_model_len + 1):
            with pytest.raises(InvalidRequest, match=f"{length} tokens; 1 to {plan.max_model_len}"):
                await engine.pool(requests(1, length=length))
        assert engine.num_unfinished == 0


async def test_a_lost_device_ends_the_engine(plan: PoolingPlan) -> None:
    def lose(batch: Sequence[PoolingRequest]) -> None:
        raise DeviceLost("gone")

    async with started(plan, FakeRunner(before=lose)) as engine:
        with pytest.raises(EngineDead, match="gone"):
            await engine.pool(requests(1))
        with pytest.raises(EngineDead, match="gone"):
            await engine.wait_ended()
        with pytest.raises(EngineDead, match="gone"):
            await engine.pool(requests(1))
        assert not engine.is_alive


async def test_a_shutdown_fails_pending_requests(plan: PoolingPlan) -> None:
    gate = Gate()
    async with started(plan, FakeRunner(before=gate)) as engine:
        waiting = asyncio.create_task(engine.pool(requests(1)))
        await asyncio.to_thread(gate.reached.wait, WAIT_S)
        assert not await engine.shutdown(0.01)
        with pytest.raises(EngineDead, match="shutting down"):
            await waiting
        gate.open()
        await engine.wait_ended()


async def test_a_core_that_can_not_be_built(plan: PoolingPlan) -> None:
    def build() -> FakeCore:
        raise InvalidRequest("no such core")

    engine = PoolingEngine(build, plan)
    with pytest.raises(InvalidRequest, match="no such core"):
        await engine.start()
    assert not engine.is_alive
    assert engine.stats().num_requests_running == 0


# With the server around it


def test_a_full_queue_is_429(plan: PoolingPlan, directory: Path) -> None:
    gate = Gate()
    engine = PoolingEngine(lambda: FakeCore(FakeRunner(before=gate)), plan)
    with running(directory, engine, max_num_seqs=1, max_waiting=1) as server, server.http() as client:
        answers: list[httpx.Response] = []
        body = {"input": "a"}
        asking = threading.Thread(target=lambda: answers.append(client.post("/v1/embeddings", json=body)))
        asking.start()
        assert gate.reached.wait(WAIT_S)
        refused = client.post("/v1/embeddings", json={"input": ["a", "b"]})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) > 0
        gate.open()
        asking.join(WAIT_S)
        assert answers[0].status_code == 200


def test_a_client_that_disconnects_frees_its_slot(plan: PoolingPlan, directory: Path) -> None:
    gate = Gate()
    runner = FakeRunner(before=gate)
    engine = PoolingEngine(lambda: FakeCore(runner), plan)
    with running(directory, engine) as server, server.http() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/embeddings", json={"input": ["a", "b", "c", "d", "a", "b"]}, timeout=1)
        wait_until(lambda: server.engine.num_unfinished == 0)
        gate.open()
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert runner.batches == [4, 1]
