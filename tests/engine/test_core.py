from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.core.batch import Batch, StepResult
from engine.core.engine_core import EngineCore
from engine.core.types import FinishReason, TokenDelta
from engine.errors import ConfigError, DeviceLost, EngineError, InvalidRequest
from tests.engine.fake_runner import FakeRunner, make_request, reference_output


def make_core(runner: FakeRunner, *, max_num_seqs: int = 8) -> EngineCore:
    config = EngineConfig(model=Path("nowhere"), max_num_seqs=max_num_seqs, max_num_batched_tokens=64)
    return EngineCore.from_config(config, runner, max_model_len=64, eos_token_ids=[39])


def run_to_the_end(core: EngineCore) -> list[TokenDelta]:
    deltas = []
    while core.has_work:
        deltas += core.step()
        core.check_integrity()
    return deltas


def raiser(
    error: Exception, *, when: Callable[[Batch], bool] = lambda batch: True
) -> Callable[[Batch], None]:
    def before(batch: Batch) -> None:
        if when(batch):
            raise error

    return before


def test_steps_complete_every_request() -> None:
    core = make_core(FakeRunner())
    requests = [make_request(name, [number, 5], max_tokens=6) for number, name in enumerate("abc")]
    for request in requests:
        core.add(request)
    deltas = run_to_the_end(core)
    for request in requests:
        own = [delta for delta in deltas if delta.request_id == request.request_id]
        assert [token for delta in own for token in delta.token_ids] == reference_output(
            request, eos_token_ids=[39]
        )
        assert [delta.finish_reason for delta in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason
    assert core.stats().kv_cache_usage == 0


def test_limits_come_from_the_configuration_and_the_cache() -> None:
    assert make_core(FakeRunner(num_blocks=4, block_size=4)).max_model_len == 16
    core = make_core(FakeRunner())
    assert core.max_model_len == 64
    with pytest.raises(InvalidRequest, match="64 tokens"):
        core.check(make_request("a", range(64)))
    assert not core.has_work
    with pytest.raises(ConfigError, match="max_num_seqs 0"):
        make_core(FakeRunner(), max_num_seqs=0)


def test_an_abort_between_steps_gives_the_last_delta() -> None:
    core = make_core(FakeRunner())
    core.add(make_request("a", [1]))
    core.step()
    delta = core.abort("a")
    assert delta is not None and delta.finish_reason == FinishReason.ABORT
    assert core.abort("a") is None
    assert not core.has_work
    assert (
        repr(core) == "<EngineCore <Scheduler 0 running, 0 waiting, "
        "<BlockManager 64 x 4: 0 allocated, 0 cached, 64 empty>>>"
    )


def test_a_failed_step_is_released_before_the_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback would keep its tensors alive, and the retry would run out of memory too."""

    class Tensor:
        pass

    monkeypatch.setattr(
        logging.getLogger("engine.core.engine_core"), "disabled", True
    )  # pytest keeps records whole
    alive: list[weakref.ref[Tensor]] = []
    seen: list[bool] = []

    def before(batch: Batch) -> None:
        seen.extend(one() is not None for one in alive)
        if len(batch.sequences) > 1:
            tensor = Tensor()
            alive.append(weakref.ref(tensor))
            raise MemoryError("no room")

    core = make_core(FakeRunner(before=before))
    for name in "ab":
        core.add(make_request(name, [1], max_tokens=1))
    run_to_the_end(core)
    assert seen and not any(seen)


def test_a_failed_step_ends_only_its_own_requests(caplog: pytest.LogCaptureFixture) -> None:
    poisoned = raiser(
        RuntimeError("index out of range"),
        when=lambda batch: any(sequence.request_id == "bad" for sequence in batch.sequences),
    )
    core = make_core(FakeRunner(before=poisoned), max_num_seqs=1)
    good = make_request("good", [1])
    core.add(make_request("bad", [2]))
    core.add(good)
    with caplog.at_level(logging.ERROR):
        (error,) = core.step()
    assert (error.request_id, error.finish_reason) == ("bad", FinishReason.ERROR)
    assert str(error.error) == "This request failed in the engine: RuntimeError: index out of range"
    assert "A step of 1 sequences failed." in caplog.text
    tokens = [token for delta in run_to_the_end(core) for token in delta.token_ids]
    assert tokens == reference_output(good, eos_token_ids=[39])


def test_the_sequence_that_breaks_a_step_is_found_and_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    poisoned = raiser(
        ValueError("out of range"),
        when=lambda batch: any(sequence.request_id == "bad" for sequence in batch.sequences),
    )
    core = make_core(FakeRunner(before=poisoned))
    good = [make_request(name, [number, 5], max_tokens=6) for number, name in enumerate("abc")]
    for request in (*good[:2], make_request("bad", range(9)), good[2]):
        core.add(request)
    deltas = run_to_the_end(core)
    (error,) = (delta for delta in deltas if delta.error is not None)
    assert error.request_id == "bad" and "ValueError: out of range" in str(error.error)
    for request in good:
        tokens = [t for delta in deltas if delta.request_id == request.request_id for t in delta.token_ids]
        assert tokens == reference_output(request, eos_token_ids=[39])
    assert "A step of 4 sequences failed." in caplog.text


def test_a_core_with_work_does_not_sleep() -> None:
    runner = FakeRunner()
    core = make_core(runner)
    core.add(make_request("a", [1]))
    with pytest.raises(EngineError, match="while there is work"):
        core.sleep(1)
    assert runner.sleeps == []


@pytest.mark.parametrize("wrong", [[], [()], [(1,), (2,)]])
def test_an_invalid_step_result_is_a_failure(wrong: list[tuple[int, ...]]) -> None:
    class Wrong(FakeRunner):
        def execute(self, batch: Batch) -> StepResult:
            return StepResult(wrong)

    core = make_core(Wrong())
    core.add(make_request("a", [1]))
    (error,) = core.step()
    assert f"The runner returned {wrong} for sequences" in str(error.error)
    assert not core.has_work


def test_a_lost_device_ends_the_core() -> None:
    core = make_core(FakeRunner(before=raiser(DeviceLost("CUDA error: device-side assert"))))
    core.add(make_request("a", [1]))
    with pytest.raises(DeviceLost):
        core.step()
