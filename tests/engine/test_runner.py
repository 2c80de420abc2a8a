"""The runner's contract with the core, and what build_core builds from a configuration."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core.batch import Batch, ScheduledSequence
from engine.core.engine_core import EngineCore
from engine.core.sleep import ALL_PARTS
from engine.errors import ConfigError, EngineAsleep, ModelNotFound
from engine.execution.build import build_core
from engine.execution.offload import tensors_of
from engine.execution.runner import ModelRunner
from tests.engine.test_models import chunk, runner_of
from tests.engine.tiny_models import CONTEXT, Reference, prompt_of


def unsampled(tokens: list[int], start: int, stop: int, blocks: range) -> ScheduledSequence:
    sequence = chunk(tokens, start, stop, blocks)
    return sequence._replace(input=sequence.input._replace(samples=False))


def test_a_token_for_each_sequence_that_samples_and_none_for_the_others(
    checkpoint: Callable[[str], Path],
) -> None:
    path = checkpoint("qwen3-tied")
    first, second, third = prompt_of(9), prompt_of(30), prompt_of(14)
    runner = runner_of(path)
    tokens = runner.execute(
        Batch(
            (
                chunk(first, 0, 9, range(4)),
                unsampled(second, 0, 20, range(10, 20)),
                chunk(third, 0, 14, range(20, 24)),
            )
        )
    ).tokens
    reference = Reference(path)
    assert tokens == [(reference.generate(first, 1)[0],), (), (reference.generate(third, 1)[0],)]


def test_a_step_in_which_nothing_samples(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("qwen3-tied")
    runner = runner_of(path)
    tokens = prompt_of(30)
    assert runner.execute(Batch((unsampled(tokens, 0, 20, range(4)),))).tokens == [()]
    last = runner.execute(Batch((chunk(tokens, 20, 30, range(4)),)))
    assert last.tokens == [tuple(Reference(path).generate(tokens, 1))]


def test_a_step_may_be_submitted_before_the_last_is_collected(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("qwen3-tied")
    runner, reference = runner_of(path), Reference(path)
    prompts = [prompt_of(9), prompt_of(30)]
    tickets = [
        runner.submit(Batch((chunk(prompt, 0, len(prompt), blocks),)))
        for prompt, blocks in zip(prompts, (range(4), range(10, 20)), strict=True)
    ]
    for prompt, ticket in zip(prompts, tickets, strict=True):
        assert runner.collect(ticket).tokens == [tuple(reference.generate(prompt, 1))]


def test_a_temporary_runner_leaves_nothing_behind(checkpoint: Callable[[str], Path]) -> None:
    """One measures the memory of a step: its cache must be gone before the real one is made."""
    runner = runner_of(checkpoint("qwen3-tied"))
    runner.warm_up(8)
    cached = weakref.ref(runner._residency.cache.keys[0])
    gc.disable()
    try:
        del runner
        assert cached() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_frees_memory_and_waking_up_allocates_it(level: int, checkpoint: Callable[[str], Path]) -> None:
    from tests.engine.test_generation import greedy, run

    core = build_core(config_of(checkpoint("qwen3-tied"), dtype="float32"))
    before = run(core, [greedy("a", prompt_of(40))])["a"]
    weights, cached = ([weakref.ref(tensor) for tensor in tensors] for tensors in _tensors_of(core))
    assert weights and cached
    core.sleep(level)
    assert not any(tensor() is not None for tensor in cached)
    assert any(tensor() is not None for tensor in weights) == (level == 1)
    with pytest.raises(EngineAsleep):
        core._runner.submit(Batch((chunk([1], 0, 1, range(1)),)))
    core.wake_up(ALL_PARTS)
    assert core.stats().kv_cache_usage == 0
    assert run(core, [greedy("a", prompt_of(40))])["a"] == before


def _tensors_of(core: EngineCore) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights and the KV cache, found among all live tensors."""
    runner = core._runner
    assert isinstance(runner, ModelRunner)
    weights = [tensor for _, _, tensor in tensors_of(runner._residency.model.modules())]
    return weights, runner._residency.cache.tensors()


def config_of(path: Path, **options: Any) -> EngineConfig:
    return EngineConfig(model=path, device="cpu", num_threads=2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "--dtype int8"),
        ({"max_model_len": CONTEXT + 1}, f"max_position_embeddings is {CONTEXT}"),
        ({"num_gpu_blocks_override": 2, "max_model_len": 100}, "--num-gpu-blocks-override gives 2"),
    ],
)
def test_an_invalid_configuration_is_refused(
    options: dict[str, Any], message: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_core(config_of(checkpoint("qwen3-tied"), **options))


def test_an_unknown_device_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="--device tpu"):
        build_core(EngineConfig(model=checkpoint("qwen3-tied"), device="tpu"))


def test_an_absent_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="absent"):
        build_core(config_of(tmp_path / "absent"))


def test_the_phases_of_a_start_are_logged(
    checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="engine.execution.build"):
        core = build_core(config_of(checkpoint("llama3-tied")))
    assert core.max_model_len == CONTEXT
    assert core._scheduler._max_prefill_beside_decodes == 256  # the default on a CPU
    for words in ("Loaded weights in ", "Warmed up in ", f"longest sequence {CONTEXT} tokens"):
        assert words in caplog.text
