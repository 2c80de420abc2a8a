from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.core.async_engine import AsyncEngine, TokenStream
from engine.core.batch import Batch
from engine.core.engine_core import EngineCore
from engine.core.sleep import Part, SleepMode
from engine.core.types import EngineRequest, EngineStats, FinishReason, SamplingParams, TokenDelta
from engine.errors import DeviceLost, EngineAsleep, EngineDead, InvalidRequest, OutOfMemory
from tests.engine.fake_runner import FakeRunner, make_request, reference_output

WAIT_S = 30


class Gate:
    """Stops the runner at the beginning of each step until the test lets it through."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, batch: Batch) -> None:
        if not self._is_open:
            self._arrived.release()
            assert self._passes.acquire(timeout=WAIT_S)

    async def arrival(self) -> None:
        assert await asyncio.to_thread(self._arrived.acquire, timeout=WAIT_S)

    def let_one_pass(self) -> None:
        self._passes.release()

    def open(self) -> None:
        self._is_open = True
        self._passes.release()


def builder(runner: FakeRunner, *, max_num_seqs: int = 8) -> Callable[[], EngineCore]:
    config = EngineConfig(model=Path("nowhere"), max_num_seqs=max_num_seqs, max_num_batched_tokens=64)
    return lambda: EngineCore.from_config(config, runner, max_model_len=256, eos_token_ids=[])


@asynccontextmanager
async def running(runner: FakeRunner, *, max_num_seqs: int = 8) -> AsyncIterator[AsyncEngine]:
    others = set(threading.enumerate())
    engine = AsyncEngine(builder(runner, max_num_seqs=max_num_seqs))
    await engine.start()
    try:
        yield engine
    finally:
        assert await engine.shutdown(WAIT_S)
        assert "engine" not in {thread.name for thread in set(threading.enumerate()) - others}


@asynccontextmanager
async def counted_wake_ups() -> AsyncIterator[list[object]]:
    """The calls of the engine's thread on the loop."""
    loop = asyncio.get_running_loop()
    original = loop.call_soon_threadsafe
    calls: list[object] = []

    def counted(callback: Callable[..., object], *args: object) -> asyncio.Handle:
        if threading.current_thread().name == "engine":
            calls.append(callback)
        return original(callback, *args)

    loop.call_soon_threadsafe = counted  # type: ignore[assignment,method-assign]
    try:
        yield calls
    finally:
        loop.call_soon_threadsafe = original  # type: ignore[method-assign]


def is_sleeping(engine: AsyncEngine) -> bool:
    """A function, because a type checker assumes that a property stays as it was asserted."""
    return engine.sleep_controller.is_sleeping


async def read(stream: TokenStream) -> list[TokenDelta]:
    async with stream:
        return [delta async for delta in stream]


async def generate(engine: AsyncEngine, request: EngineRequest) -> list[int]:
    return [token for delta in await read(engine.stream(request)) for token in delta.token_ids]


# Streams


async def test_concurrent_streams_give_the_same_output_as_alone() -> None:
    async with running(FakeRunner(num_blocks=48)) as engine:
        requests = [make_request(f"r{n}", range(n, n + 9), max_tokens=5 + n) for n in range(20)]
        outputs = await asyncio.gather(*(generate(engine, request) for request in requests))
        assert outputs == [reference_output(request) for request in requests]
        assert engine.num_unfinished == 0 and engine.stats().kv_cache_usage == 0


async def test_a_stream_has_one_delta_per_step_then_ends() -> None:
    gate = Gate()
    async with running(FakeRunner(before=gate)) as engine:
        stream = engine.stream(make_request("a", [1, 2], max_tokens=2))
        assert repr(stream) == "<TokenStream a open, 0 tokens unread>"
        gate.let_one_pass()
        first = await anext(stream)
        gate.let_one_pass()
        second = await anext(stream)
        assert (*first.token_ids, *second.token_ids) == (
            *reference_output(make_request("a", [1, 2], max_tokens=2)),
        )
        assert (first.finish_reason, second.finish_reason) == (None, FinishReason.LENGTH)
        assert first.timings is not None and first.timings.finished_time is None
        assert second.timings is not None and second.timings.end_to_end_s is not None
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert repr(stream) == "<TokenStream a ended, 0 tokens unread>"


async def test_unread_deltas_are_merged_into_one() -> None:
    async with running(FakeRunner()) as engine:
        slow = make_request("slow", [1], max_tokens=30)
        stream = engine.stream(slow)
        await generate(engine, make_request("quick", [2], max_tokens=40))
        (delta,) = await read(stream)
        assert list(delta.token_ids) == reference_output(slow)
        assert delta.finish_reason == FinishReason.LENGTH and delta.timings is not None


async def test_a_merged_delta_keeps_the_first_ones_timings() -> None:
    gate = Gate()
    async with running(FakeRunner(before=gate)) as engine:
        stream = engine.stream(make_request("a", [1], max_tokens=30))
        for _ in range(3):
            await gate.arrival()
            gate.let_one_pass()
        await gate.arrival()  # in the fourth step: three have been delivered
        delta = await anext(stream)
        assert len(delta.token_ids) == 3 and delta.finish_reason is None
        assert delta.timings is not None and delta.timings.first_token_time is not None
        gate.open()
        await stream.aclose()


async def test_a_step_without_output_does_not_wake_the_loop() -> None:
    gate = Gate()
    async with running(FakeRunner(before=gate)) as engine, counted_wake_ups() as wake_ups:
        stream = engine.stream(make_request("a", range(100), max_tokens=1))
        await gate.arrival()
        gate.let_one_pass()  # 64 of the 100 tokens
        await gate.arrival()
        assert repr(stream) == "<TokenStream a open, 0 tokens unread>"
        assert wake_ups == []
        gate.open()
        (delta,) = await read(stream)
        assert len(delta.token_ids) == len(wake_ups) == 1


async def test_a_step_wakes_the_loop_once() -> None:
    runner = FakeRunner()
    async with running(runner) as engine, counted_wake_ups() as wake_ups:
        await asyncio.gather(*(generate(engine, make_request(f"r{n}", [n], max_tokens=20)) for n in range(8)))
        assert 20 <= len(wake_ups) <= runner.num_steps


# Refusals


async def test_an_invalid_request_is_refused_at_once() -> None:
    async with running(FakeRunner()) as engine:
        assert engine.max_model_len == 256
        with pytest.raises(InvalidRequest, match="prompt is empty"):
            engine.stream(make_request("a", []))
        assert engine.num_unfinished == 0


async def test_an_id_is_in_use_until_the_engine_has_released_it() -> None:
    gate = Gate()
    async with running(FakeRunner(before=gate)) as engine:
        stream = engine.stream(make_request("a", [1], max_tokens=99))
        await gate.arrival()
        await stream.aclose()
        assert engine.num_unfinished == 1
        with pytest.raises(InvalidRequest, match="'a' is in use"):
            engine.stream(make_request("a", [2]))
        gate.open()
        await generate(engine, make_request("b", [1]))
        with pytest.raises(StopAsyncIteration):  # deltas after the reader has left are dropped
            await anext(stream)
        again = make_request("a", [2])
        assert await generate(engine, again) == reference_output(again)


# Leaving


async def test_leaving_early_frees_the_blocks() -> None:
    async with running(FakeRunner()) as engine:
        async with engine.stream(make_request("a", range(20), max_tokens=200)) as stream:
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.aclose()
        await generate(engine, make_request("after", [1], max_tokens=1))
        assert engine.num_unfinished == 0 and engine.stats().kv_cache_usage == 0


async def test_a_cancelled_reader_frees_its_blocks() -> None:
    gate = Gate()
    async with running(FakeRunner(before=gate)) as engine:
        task = asyncio.create_task(read(engine.stream(make_request("a", [1], max_tokens=200))))
        await gate.arrival()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await generate(engine, make_request("after", [1], max_tokens=1))
        assert engine.num_unfinished == 0 and engine.stats().kv_cache_usage == 0


async def test_an_abort_by_another_task_ends_the_stream() -> None:
    gate = Gate()
    async with running(FakeRunner(before=gate)) as engine:
        stream = engine.stream(make_request("a", [1], max_tokens=200))
        await gate.arrival()
        engine.abort("a")
        engine.abort("a")
        engine.abort("unknown")
        gate.open()
        deltas = await read(stream)
        assert deltas[-1].finish_reason == FinishReason.ABORT
        assert sum(len(delta.token_ids) for delta in deltas) == 1  # of the step that ran
        assert engine.num_unfinished == 0


async def test_many_readers_that_come_and_go() -> None:
    """Readers that stay, leave, are cancelled or aborted, in a cache too small for all of them."""
    rng = random.Random(7)

    async def client(number: int) -> None:
        request = make_request(
            f"r{number}", [number % 3] * rng.randrange(1, 30), max_tokens=rng.randrange(1, 40)
        )
        expected = reference_output(request)
        stays = rng.randrange(len(expected) + 4)
        output: list[int] = []
        async with engine.stream(request) as stream:
            async for delta in stream:
                output += delta.token_ids
                if delta.finish_reason == FinishReason.LENGTH:
                    assert output == expected
                if len(output) > stays:
                    if number % 3 == 0:
                        break
                    if number % 3 == 1:
                        engine.abort(request.request_id)
        assert output == expected[: len(output)]

    async with running(FakeRunner(num_blocks=40), max_num_seqs=6) as engine:
        tasks = [asyncio.create_task(client(number)) for number in range(120)]
        for task in rng.sample(tasks, 20):
            await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {type(None), asyncio.CancelledError}
        await generate(engine, make_request("after", [1], max_tokens=1))
        assert engine.num_unfinished == 0 and engine.stats().kv_cache_usage == 0


# Failures


async def test_an_error_of_building_is_raised_by_start() -> None:
    def build() -> EngineCore:
        raise InvalidRequest("no such model")

    engine = AsyncEngine(build)
    with pytest.raises(InvalidRequest, match="no such model"):
        await engine.start()
    assert not engine.is_alive
    with pytest.raises(EngineDead, match="no such model"):
        engine.stream(make_request("a", [1]))
    assert await engine.shutdown(WAIT_S)


async def test_a_step_error_reaches_its_own_client_only() -> None:
    def before(batch: Batch) -> None:
        if batch.sequences[0].request_id == "bad":
            raise RuntimeError("poisoned")

    async with running(FakeRunner(before=before), max_num_seqs=1) as engine:
        good = make_request("good", [1])
        bad_stream, good_tokens = engine.stream(make_request("bad", [2])), generate(engine, good)
        (delta,), tokens = await asyncio.gather(read(bad_stream), good_tokens)
        assert delta.finish_reason == FinishReason.ERROR and "poisoned" in str(delta.error)
        assert tokens == reference_output(good)
        assert engine.is_alive


async def test_all_streams_learn_of_the_threads_death() -> None:
    gate = Gate()

    def before(batch: Batch) -> None:
        gate(batch)
        raise DeviceLost("the device is gone")

    engine = AsyncEngine(builder(FakeRunner(before=before), max_num_seqs=1))
    await engine.start()
    streams = [engine.stream(make_request(name, [1])) for name in "ab"]
    ended = asyncio.create_task(engine.wait_ended())
    gate.open()
    for stream in streams:
        for _ in range(2):
            with pytest.raises(EngineDead, match="DeviceLost: the device is gone"):
                await anext(stream)
    with pytest.raises(EngineDead, match="the device is gone"):
        await ended
    assert not engine.is_alive and engine.num_unfinished == 0
    with pytest.raises(EngineDead, match="the device is gone"):
        engine.stream(make_request("c", [1]))
    assert await engine.shutdown(WAIT_S)


async def test_inconsistent_bookkeeping_is_noticed_when_idle_in_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def build() -> EngineCore:
        return core

    def spoil(batch: Batch) -> None:
        core._scheduler._block_manager._ref_counts[63] = 1

    core = builder(FakeRunner(before=spoil))()
    with caplog.at_level(logging.DEBUG, logger="engine.core.async_engine"):
        engine = AsyncEngine(build)
        await engine.start()
        await generate(engine, make_request("a", [1], max_tokens=1))
        with pytest.raises(EngineDead, match="Block 63 should have"):
            await engine.wait_ended()
    assert await engine.shutdown(WAIT_S)


def test_a_loop_that_was_closed_ends_the_thread() -> None:
    gate = Gate()
    others = set(threading.enumerate())
    engine = AsyncEngine(builder(FakeRunner(before=gate)))

    async def forget() -> None:
        await engine.start()
        engine.stream(make_request("a", [1], max_tokens=9))
        await gate.arrival()

    asyncio.run(forget())
    gate.open()
    mine = set(threading.enumerate()) - others
    thread = next(thread for thread in mine if thread.name == "engine")
    thread.join(WAIT_S)
    assert not thread.is_alive()


# Beginning and end


async def test_an_engine_accepts_nothing_before_its_start() -> None:
    engine = AsyncEngine(builder(FakeRunner()))
    assert not engine.is_alive and engine.stats() == EngineStats()
    with pytest.raises(EngineDead, match="has not been started"):
        engine.stream(make_request("a", [1]))
    with pytest.raises(EngineDead, match="has not been started"):
        _ = engine.max_model_len
    assert repr(engine) == "<AsyncEngine not alive, 0 streams, None>"
    assert await engine.shutdown(WAIT_S)


async def test_a_cancelled_start_ends_the_thread() -> None:
    building, go_on = threading.Event(), threading.Event()

    def build() -> EngineCore:
        building.set()
        assert go_on.wait(WAIT_S)
        return builder(FakeRunner())()

    engine = AsyncEngine(build)
    task = asyncio.create_task(engine.start())
    assert await asyncio.to_thread(building.wait, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await engine.wait_ended()
    assert not engine.is_alive


async def test_shutdown_aborts_open_requests() -> None:
    gate = Gate()
    engine = AsyncEngine(builder(FakeRunner(before=gate), max_num_seqs=1))
    await engine.start()
    was_alive = engine.is_alive
    streams = [engine.stream(make_request(name, [1], max_tokens=200)) for name in "ab"]
    await gate.arrival()
    stopping = asyncio.create_task(engine.shutdown(WAIT_S))
    await asyncio.sleep(0)
    assert (was_alive, engine.is_alive) == (True, False)
    with pytest.raises(EngineDead, match="is shutting down"):
        engine.stream(make_request("c", [1]))
    gate.open()
    assert await stopping
    for stream in streams:
        assert (await read(stream))[-1].finish_reason == FinishReason.ABORT
    await engine.wait_ended()
    assert await engine.shutdown(WAIT_S)
    assert engine.stats().kv_cache_usage == 0


async def test_shutdown_does_not_wait_forever_for_a_step() -> None:
    gate = Gate()
    engine = AsyncEngine(builder(FakeRunner(before=gate)))
    await engine.start()
    stream = engine.stream(make_request("a", [1], max_tokens=200))
    await gate.arrival()
    assert not await engine.shutdown(0.01)
    with pytest.raises(EngineDead, match=r"took longer than 0\.01 s"):
        await anext(stream)
    gate.open()
    assert await engine.shutdown(WAIT_S)


# Sleep


async def test_sleep_aborts_running_requests_and_refuses_new_ones() -> None:
    gate = Gate()
    runner = FakeRunner(before=gate)
    async with running(runner) as engine:
        stream = engine.stream(make_request("a", [1], max_tokens=200))
        await gate.arrival()
        asleep = asyncio.create_task(engine.sleep_controller.sleep(2, SleepMode.ABORT))
        await asyncio.sleep(0)
        assert is_sleeping(engine)
        gate.open()
        assert (await read(stream))[-1].finish_reason == FinishReason.ABORT
        await asleep
        assert runner.sleeps == [2] and engine.is_alive
        with pytest.raises(EngineAsleep, match="wake_up"):
            engine.stream(make_request("b", [1]))
        await engine.sleep_controller.wake_up()
        await engine.sleep_controller.wake_up()
        assert not is_sleeping(engine)
        again = make_request("b", [1])
        assert await generate(engine, again) == reference_output(again)


async def test_sleep_can_wait_for_running_requests() -> None:
    gate = Gate()
    runner = FakeRunner(before=gate)
    async with running(runner) as engine:
        request = make_request("a", [1], max_tokens=20)
        stream = engine.stream(request)
        await gate.arrival()
        impatient = asyncio.create_task(engine.sleep_controller.sleep(1, SleepMode.WAIT))
        await asyncio.sleep(0)
        assert is_sleeping(engine)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert not is_sleeping(engine), "a cancelled wait leaves the engine awake"
        patient = asyncio.create_task(engine.sleep_controller.sleep(1, SleepMode.WAIT))
        waking = asyncio.create_task(engine.sleep_controller.wake_up())  # comes when it sleeps
        gate.open()
        assert [token for delta in await read(stream) for token in delta.token_ids] == reference_output(
            request
        )
        await patient
        await waking
        assert runner.sleeps == [1] and not is_sleeping(engine)


async def test_a_sleep_and_a_reset_clear_the_prefix_cache() -> None:
    async with running(FakeRunner()) as engine:

        async def num_cached(name: str) -> int:
            (*_, last) = await read(engine.stream(make_request(name, range(30))))
            return last.num_cached_tokens

        assert [await num_cached("a"), await num_cached("b")] == [0, 28]
        await engine.reset_prefix_cache()
        assert [await num_cached("c"), await num_cached("d")] == [0, 28]
        await engine.sleep_controller.sleep(1, SleepMode.ABORT)
        await engine.sleep_controller.wake_up()
        assert [await num_cached("e"), await num_cached("f")] == [0, 28]


async def test_a_failed_wake_up_can_be_retried(caplog: pytest.LogCaptureFixture) -> None:
    class Shaky(FakeRunner):
        failures = 1

        def wake_up(self, parts: Set[Part]) -> None:
            if self.failures:
                self.failures -= 1
                raise OutOfMemory("no room for the weights")
            super().wake_up(parts)

    async with running(Shaky()) as engine:
        await engine.sleep_controller.sleep(1, SleepMode.ABORT)
        with pytest.raises(OutOfMemory, match="no room"):
            await engine.sleep_controller.wake_up()
        assert engine.sleep_controller.is_sleeping and engine.is_alive
        await engine.sleep_controller.wake_up()
        request = make_request("a", [1])
        assert await generate(engine, request) == reference_output(request)
    assert "no room for the weights" in caplog.text


async def test_calls_of_a_dead_engine_are_refused() -> None:
    gate = Gate()

    def before(batch: Batch) -> None:
        gate(batch)
        raise DeviceLost("gone")

    engine = AsyncEngine(builder(FakeRunner(before=before)))
    with pytest.raises(EngineDead):
        await engine.reset_prefix_cache()
    await engine.start()
    with pytest.raises(InvalidRequest, match="level is 3"):
        await engine.sleep_controller.sleep(3, SleepMode.ABORT)
    engine.stream(make_request("a", [1]))
    await gate.arrival()
    waiting = [
        asyncio.create_task(engine.reset_prefix_cache()),
        asyncio.create_task(engine.sleep_controller.sleep(1, SleepMode.ABORT)),
    ]
    await asyncio.sleep(0)
    assert engine.sleep_controller.is_sleeping
    gate.open()
    for task in waiting:
        with pytest.raises(EngineDead, match="gone"):
            await task
    assert await engine.shutdown(WAIT_S)


# Logprobs on their way


async def test_merged_deltas_keep_all_their_logprobs() -> None:
    async with running(FakeRunner()) as engine:
        params = SamplingParams(max_tokens=30, logprobs=0, prompt_logprobs=0)
        stream = engine.stream(make_request("slow", [1, 2, 3], params=params))
        await generate(engine, make_request("quick", [2], max_tokens=40))
        (delta,) = await read(stream)
        assert [position.chosen.token_id for position in delta.logprobs] == list(delta.token_ids)
        assert len(delta.token_ids) == 30
        assert delta.prompt_logprobs is not None and delta.prompt_logprobs[0] is None
        assert [p.chosen.token_id for p in delta.prompt_logprobs if p is not None] == [2, 3]
