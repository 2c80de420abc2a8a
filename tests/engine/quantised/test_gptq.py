"""GPTQ, against packing and dequantising by the format's definition, one value at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.models.quantised.gptq import GPTQ
from engine.models.quantised.source import DequantisedSource
from tests.engine.quantised.stored import Stored, assert_reads


def signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def pack(values: list[int], bits: int) -> list[int]:
    """Words of a stream of bits, the first value lowest."""
    stream = sum(value << (bits * at) for at, value in enumerate(values))
    return [signed(stream >> (32 * word)) for word in range(-(-len(values) * bits // 32))]


def transposed(lists: list[list[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*lists, strict=True)]


class Layer:
    def __init__(
        self, bits: int, group_size: int, *, inputs: int = 96, outputs: int = 64, seed: int = 0
    ) -> None:
        chance = random.Random(seed)
        self.bits, self.inputs, self.outputs = bits, inputs, outputs
        num_groups = -(-inputs // group_size)
        self.values = [[chance.randrange(1 << bits) for _ in range(inputs)] for _ in range(outputs)]
        self.zeros = [[chance.randrange(1, 1 << bits) for _ in range(num_groups)] for _ in range(outputs)]
        self.scales = torch.tensor(
            [[chance.uniform(0.001, 0.02) for _ in range(num_groups)] for _ in range(outputs)]
        ).half()
        self.groups = [at // group_size for at in range(inputs)]

    def tensors(self, offset: int) -> dict[str, torch.Tensor]:
        packed = [pack(row, self.bits) for row in self.values]
        zeros = [pack([zero - offset for zero in group], self.bits) for group in transposed(self.zeros)]
        return {
            "layer.qweight": torch.tensor(transposed(packed), dtype=torch.int32),
            "layer.qzeros": torch.tensor(zeros, dtype=torch.int32),
            "layer.scales": self.scales.T.contiguous(),
            "layer.g_idx": torch.tensor(self.groups, dtype=torch.int32),
            "layer.bias": torch.ones(self.outputs),
        }

    def reference(self) -> list[list[float]]:
        return [
            [
                (self.values[row][column] - self.zeros[row][group]) * float(self.scales[row, group])
                for column, group in enumerate(self.groups)
            ]
            for row in range(self.outputs)
        ]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_weights_of_both_versions_are_read_with_every_number_of_bits(bits: int, version: str) -> None:
    layer = Layer(bits, 32)
    stored = layer.tensors(1 if version == "gptq" else 0)
    format = GPTQ({"bits": bits, "group_size": 32, "sym": False, "checkpoint_format": version})
    source = DequantisedSource(Stored(stored), format)
    assert source.names == {"layer.weight", "layer.bias"}
    assert_reads(source, "layer.weight", layer.reference(), (8, 32))


def test_act_order_gives_each_column_its_own_group() -> None:
    layer = Layer(4, 32)
    random.Random(1).shuffle(layer.groups)
    source = DequantisedSource(Stored(layer.tensors(1)), GPTQ({"bits": 4, "group_size": 32, "sym": False}))
    assert_reads(source, "layer.weight", layer.reference(), (8, 32))


def test_without_g_idx_groups_are_in_order_and_the_last_may_be_shorter() -> None:
    layer = Layer(4, 64, inputs=96)
    stored = layer.tensors(1)
    del stored["layer.g_idx"]
    source = DequantisedSource(Stored(stored), GPTQ({"bits": 4, "group_size": 64, "sym": False}))
    assert_reads(source, "layer.weight", layer.reference(), (8, 64))


@pytest.mark.parametrize("bits", [3, 4])
def test_symmetric_weights_have_their_zero_in_the_middle(bits: int) -> None:
    layer = Layer(bits, -96 * -1)
    layer.zeros = [[1 << (bits - 1)] for _ in range(layer.outputs)]
    stored = layer.tensors(1)
    if bits == 3:
        stored["layer.qzeros"] += 1  # savers differ here, and it doesn't matter
    source = DequantisedSource(Stored(stored), GPTQ({"bits": bits, "group_size": -1, "sym": True}))
    assert_reads(source, "layer.weight", layer.reference(), (8, 32))


def test_zero_points_of_zero_are_read_as_gptqmodel_writes_them_in_version_1() -> None:
    """It subtracts 1 from all of a word's values at once, so that a zero borrows from the next."""
    layer = Layer(4, 32)
    for row in layer.zeros[::3]:
        row[1] = 0
    stored = layer.tensors(0)
    stored["layer.qzeros"] -= 0x11111111
    source = DequantisedSource(Stored(stored), GPTQ({"bits": 4, "group_size": 32, "sym": False}))
    assert_reads(source, "layer.weight", layer.reference(), (8, 32))


def test_a_layer_may_have_more_bits_than_the_others() -> None:
    layer = Layer(8, 32)
    source = DequantisedSource(Stored(layer.tensors(1)), GPTQ({"bits": 4, "group_size": 32, "sym": False}))
    assert_reads(source, "layer.weight", layer.reference(), (8, 32))


def test_a_part_is_read_without_the_rest() -> None:
    stored = Stored(Layer(4, 32, inputs=256, outputs=256).tensors(1))
    source = DequantisedSource(stored, GPTQ({"bits": 4, "group_size": 32, "sym": False}))
    source.tensor("layer.weight", rows=slice(0, 8), columns=slice(32, 64))
    assert stored.num_read < 256 * 4


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("scales", lambda t: t[:, :-1], "layer.scales has shape [3, 63] instead of [3, 64]"),
        ("qzeros", lambda t: t[:-1], "layer.qzeros has shape [2, 8] instead of [3, 8]"),
        ("g_idx", lambda t: t + 1, "layer.g_idx names groups 1 to 3, but there are 3"),
        ("g_idx", lambda t: t[:-32], "layer.qweight has 6 bits per entry of g_idx"),
    ],
)
def test_parts_that_do_not_fit_are_named(part: str, change: Any, named: str) -> None:
    stored = Layer(4, 32).tensors(1)
    stored[f"layer.{part}"] = change(stored[f"layer.{part}"])
    with pytest.raises(CheckpointError) as caught:
        DequantisedSource(Stored(stored), GPTQ({"bits": 4, "group_size": 32})).tensor("layer.weight")
    assert named in caught.value.message


@pytest.mark.parametrize("part", ["scales", "qzeros"])
def test_missing_parts_are_named(part: str) -> None:
    stored = Layer(4, 32).tensors(1)
    del stored[f"layer.{part}"]
    with pytest.raises(CheckpointError, match=f"has layer.qweight, but not layer.{part}"):
        DequantisedSource(Stored(stored), GPTQ({"bits": 4, "group_size": 32, "sym": False}))
