"""A GPU runs PyTorch's operators unless the environment asks for our kernels."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from engine.execution.graphs import recorder_for
from engine.models.attention.backend import choose_backends
from engine.models.attention.paged import PagedKVCache
from engine.models.attention.sdpa import SdpaBackend
from engine.models.attention.spec import AttentionSpec
from engine.models.operators import TorchOperators, find_operators
from engine.models.triton_kernels.switches import GRAPHS, KERNELS, uses_cuda_graphs, uses_triton

SPEC = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=64, scale=0.125)


@pytest.fixture(autouse=True)
def _neither_is_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(KERNELS, raising=False)
    monkeypatch.delenv(GRAPHS, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    uses_triton.cache_clear()
    yield
    uses_triton.cache_clear()


def test_both_are_off_by_default() -> None:
    device, dtype = torch.device("cuda"), torch.bfloat16
    assert not uses_triton("cuda") and not uses_cuda_graphs("cuda")
    assert isinstance(find_operators("cuda", dtype), TorchOperators)
    assert choose_backends([SPEC], block_size=16, dtype=dtype, device=device) == [SdpaBackend(16)]


@pytest.mark.parametrize("value", ["", "0", "true"])
def test_only_1_turns_them_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS, value)
    assert not uses_triton("cuda")


def test_each_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS, "1")
    assert uses_triton("cuda") and not uses_cuda_graphs("cuda")
    monkeypatch.setenv(GRAPHS, "1")
    assert uses_cuda_graphs("cuda")


def test_graphs_without_kernels_are_refused_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(GRAPHS, "1")
    assert not uses_cuda_graphs("cuda")
    assert "BERTH_CUDA_GRAPHS is 1, but has no effect without BERTH_TRITON_KERNELS=1." in caplog.text


def test_without_triton_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KERNELS, "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not uses_triton("cuda")
    assert "Triton isn't installed" in caplog.text


def test_a_cpu_has_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS, "1")
    monkeypatch.setenv(GRAPHS, "1")
    cache = PagedKVCache([SPEC], num_blocks=2, block_size=4, dtype=torch.float32, device=torch.device("cpu"))
    assert not uses_triton("cpu")
    assert recorder_for(cache) is None


def test_on_a_cpu_triton_is_not_imported() -> None:
    """It takes longer to import than the demo model to load."""
    code = "import engine.execution.build, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
