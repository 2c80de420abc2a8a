"""Ranks that fail, hang or can't start: rank 0 says which and why, and none stays behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import LLM, SamplingParams
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.sleep import ALL_PARTS
from engine.errors import CheckpointError, ConfigError, DeviceLost, EngineError
from engine.execution.build import build_core
from engine.execution.parallel import cores, start
from engine.execution.parallel.leading_runner import LeadingRunner
from engine.execution.parallel.messages import Score
from engine.execution.parallel.processes import Ranks
from engine.launch.preflight import check_config
from tests.engine.offline.conftest import DEMO
from tests.engine.pooling.tiny_poolers import make_pooler
from tests.engine.test_generation import greedy, run
from tests.engine.tiny_models import prompt_of

pytestmark = pytest.mark.timeout(120)


def settings(directory: Path, **options: Any) -> EngineConfig:
    return EngineConfig(
        model=directory, dtype="float32", device="cpu", num_threads=1, max_model_len=64, **options
    )


@contextmanager
def divided(directory: Path) -> Iterator[tuple[EngineCore, Ranks]]:
    """This process is rank 0 of 2."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    core = build_core(settings(directory, tensor_parallel_size=2))
    runner = core._runner
    assert isinstance(runner, LeadingRunner)
    try:
        yield core, runner._ranks
    finally:
        runner._ranks.close()
        assert runner._ranks._ranks[0].process.returncode is not None
        if affinity is not None:
            os.sched_setaffinity(0, affinity)


def test_ranks_that_have_met_leave_no_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine may be killed at any time."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with divided(tiny_model) as (core, _):
        assert list(tmp_path.glob("berth-*")) == []
        assert run(core, [greedy("a", prompt_of(20))])["a"]


def test_a_rank_that_ends_in_a_step_is_named_with_the_signal(tiny_model: Path) -> None:
    with divided(tiny_model) as (core, ranks):
        lost: list[str] = []
        core.watch_device(lambda: lost.append("lost"))
        run(core, [greedy("a", prompt_of(20))])
        core.check_device()
        ranks._ranks[0].process.send_signal(signal.SIGSEGV)
        with pytest.raises(DeviceLost, match=r"^Rank 1 of 2 was ended by SIGSEGV\.$"):
            run(core, [greedy("b", prompt_of(20))])
        assert lost == ["lost"]
        with pytest.raises(DeviceLost, match="SIGSEGV"):
            core.check_device()


def test_a_rank_that_does_not_answer_is_lost(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "STEP_TIMEOUT_S", 1.0)
    monkeypatch.setattr("engine.execution.parallel.processes._EXIT_WAIT_S", 0.1)
    with divided(tiny_model) as (core, ranks):
        ranks._ranks[0].process.send_signal(signal.SIGSTOP)
        with pytest.raises(DeviceLost, match=r"one that doesn't answer for 1 s counts as lost"):
            run(core, [greedy("a", prompt_of(20))])


def test_an_error_in_a_ranks_step_reaches_rank_0(tiny_model: Path) -> None:
    with divided(tiny_model) as (core, ranks):
        ranks.send(Score(12345, 0, 1))  # of a step that never was
        with pytest.raises(DeviceLost, match=r"^Rank 1 of 2 has failed: KeyError: 12345\.$"):
            run(core, [greedy("a", prompt_of(20))])


def test_a_rank_that_can_not_sleep_keeps_all_awake(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with divided(tiny_model) as (core, ranks):
        before, memory = run(core, [greedy("a", prompt_of(20))])["a"], core.memory
        collect = ranks.collect

        def refuse() -> list[Any]:
            monkeypatch.setattr(ranks, "collect", collect)
            collect()
            raise EngineError("Rank 1 has no main memory for its weights.")

        monkeypatch.setattr(ranks, "collect", refuse)
        with pytest.raises(EngineError, match="Rank 1 has no main memory"):
            core.sleep(1)
        assert core.memory == memory
        core.reset_prefix_cache()
        assert run(core, [greedy("a", prompt_of(20))])["a"] == before
        core.sleep(2)
        core.wake_up(ALL_PARTS)
        assert run(core, [greedy("a", prompt_of(20))])["a"] == before


def test_a_program_that_is_done_with_a_model_leaves_no_rank_behind() -> None:
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    llm = LLM(DEMO, tensor_parallel_size=2, dtype="float32", num_threads=1)
    try:
        (whole,) = llm.generate(["Hello"], SamplingParams(max_tokens=6, temperature=0))
        (rank_1,) = ranks_of_this_process()
        assert whole.outputs[0].token_ids
        llm.shutdown()
    finally:
        del llm
        gc.collect()
        if affinity is not None:
            os.sched_setaffinity(0, affinity)
    rank_1.wait(30)
    assert ranks_of_this_process() == []


def ranks_of_this_process() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "engine.execution.parallel.worker" in child.cmdline()]


def test_what_can_not_be_divided_is_refused_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    for check in (check_config, build_core):
        with pytest.raises(
            ConfigError, match=r"--tensor-parallel-size 3 doesn't divide .* Possible: 1, 2, 4"
        ):
            check(settings(tiny_model, tensor_parallel_size=3))
    pooler = settings(make_pooler("qwen3-bare", tmp_path), tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="--tensor-parallel-size 2 is for models that generate text"):
        check_config(pooler)
    pooler = replace(pooler, tensor_parallel_size=1)
    check_config(pooler)
    with pytest.raises(ConfigError, match="--enable-lora is for models that generate text"):
        check_config(replace(pooler, enable_lora=True))


def test_a_checkpoint_that_does_not_fit_ends_all_ranks(tiny_model: Path, tmp_path: Path) -> None:
    """Rank 0 fails first, as it reads the same file."""
    overrides = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    with pytest.raises(CheckpointError, match="which the model doesn't use"):
        build_core(settings(tiny_model, tensor_parallel_size=2, hf_overrides=overrides))


@pytest.mark.parametrize(
    ("usable", "size", "expected"),
    [
        ({0, 1, 2, 3}, 2, [{0, 2}, {1, 3}]),  # 0 and 2 are one core
        ({0, 1, 2, 3}, 3, None),
        ({0, 1, 3}, 2, [{0}, {1, 3}]),
        ({0, 1, 4, 5, 6, 7}, 3, [{0, 1}, {4, 5}, {6, 7}]),
        ({4, 5, 0, 1}, 2, [{0, 1}, {4, 5}]),
    ],
)
def test_ranks_get_whole_cores_of_their_own(
    usable: set[int], size: int, expected: list[set[int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    siblings = {0: {0, 2}, 2: {0, 2}, 1: {1, 3}, 3: {1, 3}}
    monkeypatch.setattr(cores, "usable_cpus", lambda: usable)
    monkeypatch.setattr(cores, "siblings_of", lambda cpu: siblings.get(cpu, {cpu}))
    monkeypatch.setattr(cores, "_node_of", lambda cpu: int(cpu >= 4))
    assert cores.divide_cores(size) == expected
