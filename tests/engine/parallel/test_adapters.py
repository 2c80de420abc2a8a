"""LoRA adapters of a divided model: each rank has its share, and all of them or none."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.core.adapter import Adapter
from engine.core.batch import Batch
from engine.core.sleep import ALL_PARTS
from engine.errors import CheckpointError, OutOfMemory
from engine.execution.parallel.rank import Rank
from tests.engine.families.harness import core_of
from tests.engine.families.recipes import build, save
from tests.engine.offline.lora_files import ALL, merge, write_adapter
from tests.engine.parallel.thread_ranks import ranks_in_threads
from tests.engine.test_generation import greedy, run
from tests.engine.test_models import chunk
from tests.engine.tiny_models import prompt_of

TARGETS = {"phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")}


def logits(core: Any, *adapters: Adapter | None) -> torch.Tensor:
    """Of the last tokens of texts that run in two steps beside each other, one for each adapter."""
    texts = [[token % 100 for token in prompt_of(9 + 3 * number)] for number in range(len(adapters))]
    for start, stop in ((0, 5), (5, None)):
        parts = [
            chunk(text, start, len(text) if stop is None else stop, [2 * number, 2 * number + 1])._replace(
                adapter=adapter
            )
            for number, (text, adapter) in enumerate(zip(texts, adapters, strict=True))
        ]
        rows = core._runner.logits(Batch(tuple(parts)))
    result: torch.Tensor = rows
    return result


@pytest.mark.parametrize(
    ("name", "size"), [("qwen3-tied", 4), ("llama-untied-bias", 2), ("phi3", 2), ("olmo2", 2)]
)
def test_adapters_of_a_divided_model_are_those_of_the_whole(
    name: str, size: int, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Four ranks repeat two key-value heads; Phi-3 stores queries, keys and values as one matrix."""
    model = save(build(name), tmp_path / "model") if name in (*TARGETS, "olmo2") else checkpoint(name)
    targets = TARGETS.get(name, ALL)
    paths = [
        write_adapter(model, tmp_path / "first", targets=targets),
        write_adapter(model, tmp_path / "second", targets=targets[:2], rank=2, seed=5),
    ]
    with ranks_in_threads():
        divided = core_of(model, tensor_parallel_size=size, enable_lora=True)
    adapters = [divided.read_adapter(path.name, path) for path in paths]
    found = logits(divided, adapters[0], None, adapters[1])
    for row, path in ((0, paths[0]), (2, paths[1])):
        merged = core_of(merge(model, path, tmp_path / f"merged-{path.name}"))
        assert (found[row] - logits(merged, None, None, None)[row]).abs().max() < 1e-4
    plain = logits(core_of(model), None, None, None)
    assert (found[1] - plain[1]).abs().max() < 1e-4
    assert (found[0] - plain[0]).abs().max() > 1e-2


def held(core: Any) -> list[set[bytes]]:
    """By rank above 0, the keys of its adapters."""
    return [set(one.rank._held) for one in core._runner._ranks._threads]


def test_ranks_keep_an_adapter_over_a_sleep_and_drop_it_after_its_last_use(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = checkpoint("qwen3-tied")
    with ranks_in_threads():
        core = core_of(model, tensor_parallel_size=4, enable_lora=True)
    adapter = core.read_adapter("one", write_adapter(model, tmp_path / "one"))
    key = adapter.key
    request = replace(greedy("a", prompt_of(20)), adapter=adapter)
    before = run(core, [request])["a"]
    assert before != run(core, [greedy("b", prompt_of(20))])["b"]
    for level in (1, 2):
        core.sleep(level)
        core.wake_up(ALL_PARTS)
        assert run(core, [request])["a"] == before
    assert held(core) == [{key}] * 3
    del adapter, request
    gc.collect()
    run(core, [greedy("c", prompt_of(20))])
    assert held(core) == [set()] * 3


@pytest.mark.parametrize("error", [CheckpointError("Rank 2 can't read it."), OutOfMemory("Rank 2 is full.")])
def test_an_adapter_that_one_rank_can_not_hold_is_on_none(
    error: Exception, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint("qwen3-tied")
    with ranks_in_threads():
        core = core_of(model, tensor_parallel_size=4, enable_lora=True)
    path, read = write_adapter(model, tmp_path / "one"), Rank.read_adapter

    def fail(self: Rank, *args: Any) -> None:
        if self._plan.rank == 2:
            raise error
        read(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Rank, "read_adapter", fail)
        with pytest.raises(type(error), match="Rank 2"):
            core.read_adapter("one", path)
    assert held(core) == [set()] * 3
    adapter = core.read_adapter("one", path)
    assert run(core, [replace(greedy("a", prompt_of(20)), adapter=adapter)])["a"]


@pytest.mark.parametrize("size", [1, 2])
def test_an_adapters_memory_is_free_with_its_last_request(
    size: int, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without another step: the engine may be idle for long."""
    model = checkpoint("qwen3-tied")
    with ranks_in_threads():
        core = core_of(model, tensor_parallel_size=size, enable_lora=True)
    path = write_adapter(model, tmp_path / "one", targets=ALL[:1], rank=7)
    adapter = core.read_adapter("one", path)
    matrices = [weakref.ref(one.a) for one in adapter.weights.values()]
    request = replace(greedy("a", prompt_of(20)), adapter=adapter)
    run(core, [request])
    del adapter, request
    gc.collect()
    assert matrices and not any(matrix() is not None for matrix in matrices)
