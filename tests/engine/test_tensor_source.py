"""A checkpoint as a source of tensors and of their parts, and layers that read from one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from engine.models.layers.head import Head
from engine.models.layers.linear import Linear
from engine.models.layers.weights import Shape, StoredLayer, WeightedLayer
from engine.models.tensor_source import ALL, TensorSource
from engine.models.weights import Checkpoint
from tests.engine.memory_source import CPU, MemorySource, load_layer
from tests.engine.test_mapped_files import resident_bytes

PARTS = [
    (ALL, ALL),
    (slice(0, 3), ALL),
    (slice(2, 5), ALL),
    (ALL, slice(1, 4)),
    (slice(4, 8), slice(2, 6)),
    (slice(2, 2), ALL),
]


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int32], ids=str)
def test_any_part_of_a_tensor_is_read_in_the_type_that_it_is_stored_in(
    shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    stored = (torch.randn(shape) * 8).to(dtype)
    save_file({"a": stored}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        source: TensorSource = checkpoint
        assert source.names == {"a"}
        assert source.shape("a") == shape
        for rows, columns in PARTS:
            part = source.tensor("a", rows=rows, columns=columns)
            assert part.dtype is dtype
            assert torch.equal(part.float(), stored.float()[rows, columns])


def test_vectors_have_rows_and_scalars_are_read_whole(tmp_path: Path) -> None:
    save_file({"vector": torch.arange(8), "scalar": torch.tensor(3.0)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensor("vector", rows=slice(2, 4)).tolist() == [2, 3]
        assert checkpoint.tensor("scalar") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_more_of_the_file_is_read_than_the_part(tmp_path: Path) -> None:
    path = tmp_path.resolve() / "model.safetensors"
    stored = torch.randn(1 << 13, 1 << 10)
    save_file({"a": stored, "b": stored.clone()}, path)
    with Checkpoint(tmp_path) as checkpoint:
        half = checkpoint.tensor("a", rows=slice(0, 1 << 12))
        assert torch.equal(half.clone(), stored[: 1 << 12])
        assert stored.nbytes / 2 <= resident_bytes(path) < stored.nbytes * 0.75


def test_projections_that_are_stored_in_one_tensor_are_loaded_as_those_stored_apart() -> None:
    sizes = (32, 16, 16)
    parts = {f"{name}.weight": torch.randn(size, 24) for name, size in zip("qkv", sizes, strict=True)}
    biases = {f"{name}.bias": torch.randn(size) for name, size in zip("qkv", sizes, strict=True)}
    whole = {
        "qkv.weight": torch.cat(list(parts.values())),
        "qkv.bias": torch.cat(list(biases.values())),
    }
    apart, together = (Linear(24, sizes, bias=True) for _ in range(2))
    load_layer(apart, parts | biases, "q", "k", "v")
    load_layer(together, whole, "qkv")
    x = torch.randn(5, 24)
    assert torch.equal(apart(x), together(x))
    assert torch.equal(together(x), F.linear(x, whole["qkv.weight"], whole["qkv.bias"]))

    wanted = together.wanted(StoredLayer(MemorySource(whole), ["qkv"], device=CPU, dtype=torch.float32))
    assert wanted == {"weight": [(64, 24)], "bias": [(64,)]}
    assert apart.part_shapes() == {"weight": [(32, 24), (16, 24), (16, 24)], "bias": [(32,), (16,), (16,)]}


def test_a_layer_is_loaded_again_with_other_weights() -> None:
    layer = Linear(8, (4,))
    x = torch.randn(3, 8)
    for seed in (0, 1):
        weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        load_layer(layer, {"weight": weight})
        assert torch.equal(layer(x), F.linear(x, weight))


def test_a_classifiers_last_layer_keeps_float32_weights_in_a_model_of_a_smaller_type() -> None:
    weight, bias, x = torch.randn(3, 8), torch.randn(3), torch.randn(2, 8)
    head = Head(8, 3, bias=True)
    load_layer(head, {"weight": weight, "bias": bias}, dtype=torch.bfloat16)
    assert torch.equal(head(x), F.linear(x, weight, bias))


class Experts(WeightedLayer):
    """As a family would write it: stacked or one by one in the checkpoint."""

    NUM, HIDDEN, SIZE = 4, 6, 5

    def wanted(self, stored: StoredLayer) -> Mapping[str, Sequence[Shape]]:
        if stored.has("gate_up_proj"):
            return {"gate_up_proj": [(self.NUM, 2 * self.SIZE, self.HIDDEN)]}
        names = [f"{e}.{name}.weight" for e in range(self.NUM) for name in ("gate_proj", "up_proj")]
        return {name: [(self.SIZE, self.HIDDEN)] for name in names}

    def load_from(self, stored: StoredLayer) -> None:
        self.weights = [self._expert(stored, e) for e in range(self.NUM)]

    def _expert(self, stored: StoredLayer, expert: int) -> torch.Tensor:
        if stored.has("gate_up_proj"):
            return stored.load("gate_up_proj", rows=slice(expert, expert + 1))[0]
        names = [f"{expert}.{name}.weight" for name in ("gate_proj", "up_proj")]
        return torch.cat([stored.load(name) for name in names])


def test_experts_are_loaded_stacked_or_one_by_one() -> None:
    stack = torch.randn(Experts.NUM, 2 * Experts.SIZE, Experts.HIDDEN)
    single = {
        f"mlp.experts.{e}.{name}.weight": half
        for e in range(Experts.NUM)
        for name, half in zip(("gate_proj", "up_proj"), stack[e].chunk(2), strict=True)
    }
    for tensors in ({"mlp.experts.gate_up_proj": stack}, single):
        layer, source = Experts(), MemorySource(tensors)
        stored = StoredLayer(source, ["mlp.experts"], device=CPU, dtype=torch.float32)
        names = {stored.full_name(name) for name in layer.wanted(stored)}
        assert names == source.names
        layer.load_from(stored)
        assert torch.equal(torch.stack(layer.weights), stack)
        assert {name for name, _, _ in source.read} == names
