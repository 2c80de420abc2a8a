"""The size of the KV cache, the location of a model, and the number of threads."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint.model_path import resolve_model
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelNotFound, OutOfMemory
from engine.execution.cache_division import CacheDivision
from engine.execution.device import translated_out_of_memory
from engine.execution.memory import (
    MOST_BLOCKS,
    CacheSize,
    MemoryBudget,
    cpu_budget,
    size_cache,
)
from engine.execution.threads import num_compute_threads
from host_limits.host_memory import host_available_bytes, host_total_bytes

KIB = 1024
BUDGET = MemoryBudget(default_bytes=1000 * KIB, limit_bytes=4000 * KIB)


def size(budget: MemoryBudget = BUDGET, *, model_limit: int = 640, **options: int) -> CacheSize:
    """With blocks of 16 tokens of 1 KiB each: a block is 16 KiB."""
    config = EngineConfig(model=Path("m"), block_size=16, **options)  # type: ignore[arg-type]
    return size_cache(config, budget, division=CacheDivision(config.block_size, KIB), model_limit=model_limit)


def test_requested_sizes_come_first() -> None:
    assert size(num_gpu_blocks_override=50, kv_cache_memory_bytes=1 << 30).num_blocks == 50
    assert size(kv_cache_memory_bytes=50 * 16 * KIB).num_blocks == 50


def test_by_default_the_cache_uses_its_share_of_the_memory() -> None:
    assert size() == CacheSize(num_blocks=62, max_model_len=640)


def test_by_default_the_cache_is_no_larger_than_useful() -> None:
    assert size(max_num_seqs=1, model_limit=100) == CacheSize(num_blocks=7, max_model_len=100)


def test_a_limit_that_no_model_has_makes_no_endless_table_of_blocks() -> None:
    budget = MemoryBudget(default_bytes=1 << 40, limit_bytes=1 << 40)
    assert size(budget, model_limit=(1 << 31) - 1).num_blocks == MOST_BLOCKS
    longest = 16 * (MOST_BLOCKS + 1)
    assert size(budget, model_limit=1 << 31, max_model_len=longest).num_blocks == MOST_BLOCKS + 1


def test_the_longest_sequence_shrinks_to_fit_unless_it_was_requested() -> None:
    assert size(model_limit=5000) == CacheSize(num_blocks=62, max_model_len=62 * 16)
    assert size(model_limit=5000, max_model_len=3000) == CacheSize(num_blocks=188, max_model_len=3000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_model_len": 640, "num_gpu_blocks_override": 39},
            "--num-gpu-blocks-override gives 39 .*lower --max-model-len to 624 or less, or raise "
            "--num-gpu-blocks-override to 40",
        ),
        (
            {"max_model_len": 640, "kv_cache_memory_bytes": 1},
            r"--kv-cache-memory-bytes gives 0 \(0.000 GiB\)\. Raise --kv-cache-memory-bytes to 655360\.$",
        ),
        ({"kv_cache_memory_bytes": 1}, "--kv-cache-memory-bytes gives 0"),
    ],
)
def test_a_sequence_that_could_never_finish_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        size(BUDGET, model_limit=8192, **options)


def test_the_error_for_short_memory_says_what_uses_it_and_what_helps() -> None:
    budget = MemoryBudget(
        default_bytes=1000 * KIB,
        limit_bytes=4000 * KIB,
        description="Others have the rest.",
        remedy="stop them",
    )
    with pytest.raises(OutOfMemory) as caught:
        size(budget, model_limit=8192, max_model_len=5000)
    assert caught.value.message == (
        "One sequence of 5000 tokens needs 313 KV-cache blocks (0.005 GiB), but the available memory gives "
        "250 (0.004 GiB). Others have the rest. Lower --max-model-len to 4000 or less, or stop them."
    )
    with pytest.raises(OutOfMemory) as caught:
        size(MemoryBudget(default_bytes=0, limit_bytes=0, remedy="stop them"), model_limit=640)
    assert caught.value.message.endswith("gives 0 (0.000 GiB). Stop them."), "no length would fit"


def test_a_cache_larger_than_all_memory_is_refused_before_allocation() -> None:
    budget = replace(BUDGET, total_bytes=100 * 16 * KIB)
    assert size(budget, num_gpu_blocks_override=100).num_blocks == 100
    with pytest.raises(OutOfMemory, match=r"--num-gpu-blocks-override asks for a KV cache of 0\.002 GiB"):
        size(budget, num_gpu_blocks_override=101)
    assert cpu_budget().total_bytes == host_total_bytes() >= host_available_bytes()


def test_an_allocators_message_is_reported_without_its_advice() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. Process 7 has 70 GiB memory in use. Of the "
        "allocated memory 60 GiB is allocated by PyTorch. If reserved but unallocated memory is large try "
        "PYTORCH_ALLOC_CONF"
    )
    with pytest.raises(OutOfMemory, match="Process 7 has 70 GiB") as caught, translated_out_of_memory():
        raise torch.OutOfMemoryError(message)
    assert "PYTORCH" not in caught.value.message
    with pytest.raises(OutOfMemory, match="can't allocate memory"), translated_out_of_memory():
        torch.empty(1 << 60, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="another"), translated_out_of_memory():
        raise RuntimeError("another")


def test_the_cache_on_a_cpu_uses_available_memory() -> None:
    assert 0 < cpu_budget().default_bytes < cpu_budget().limit_bytes <= host_available_bytes() * 1.5


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(tmp_path) == tmp_path.resolve()
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("models/mine") == (tmp_path / "models" / "mine").resolve()


def test_neither_a_directory_nor_a_hub_name_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in (str(tmp_path / "absent"), str(tmp_path / "file"), "./absent", "a/b/c", "white space"):
        with pytest.raises(ModelNotFound, match=name.rsplit("/", 1)[-1]):
            resolve_model(name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_the_local_hub_cache_is_searched(hub: Path) -> None:
    snapshot = hub / "models--someone--tiny" / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").touch()
    (hub / "models--someone--tiny" / "refs").mkdir()
    (hub / "models--someone--tiny" / "refs" / "main").write_text(snapshot.name)
    assert resolve_model("someone/tiny").resolve() == snapshot.resolve()


def test_a_name_that_cannot_be_downloaded_is_not_found(hub: Path) -> None:
    with pytest.raises(
        ModelNotFound, match="'someone/absent' is neither a directory nor in the local hub cache"
    ):
        resolve_model("someone/absent")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert num_compute_threads(3) == 3
    assert 1 <= num_compute_threads(None) <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert num_compute_threads(None) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "nonsense")
    assert 1 <= num_compute_threads(None) <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("limit", "threads"), [(0.5, 1), (1.0, 1), (1.6, 2), (None, 4), (64.0, 4)])
def test_threads_respect_the_control_groups_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("engine.execution.threads._physical_cores", lambda cpus: 4)
    monkeypatch.setattr("engine.execution.threads.cpu_limit", lambda: limit)
    assert num_compute_threads(None) == threads
