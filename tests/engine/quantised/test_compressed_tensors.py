"""compressed-tensors, against packing and dequantising by the format's definition, one value at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.models.quantised.compressed_tensors import CompressedTensors
from engine.models.quantised.source import DequantisedSource
from tests.engine.quantised.stored import Stored, assert_reads
from tests.engine.quantised.test_gptq import pack, transposed


def settings(targets: list[str] | None = None, **weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": targets or ["Linear"], "weights": weights}}}


class Packed:
    def __init__(self, bits: int, group_size: int, *, rows: int = 13, columns: int = 96) -> None:
        """13 rows: zero points, packed along them, end within a word."""
        chance = random.Random(bits)
        self.bits, self.middle = bits, 1 << (bits - 1)
        num_groups = columns // group_size
        self.rows, self.columns = rows, columns
        self.values = [[chance.randrange(1 << bits) for _ in range(columns)] for _ in range(rows)]
        self.zeros = [[self.middle] * num_groups for _ in range(rows)]
        self.scales = torch.rand(rows, num_groups, generator=torch.Generator().manual_seed(bits)) / 20
        self.groups = [column // group_size for column in range(columns)]

    def asymmetric(self) -> Packed:
        chance = random.Random(1)
        self.zeros = [[chance.randrange(1 << self.bits) for _ in row] for row in self.zeros]
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "l.weight_packed": torch.tensor([pack(row, self.bits) for row in self.values], dtype=torch.int32),
            "l.weight_shape": torch.tensor([self.rows, self.columns]),
            "l.weight_scale": self.scales,
        }

    def packed_zeros(self) -> torch.Tensor:
        return torch.tensor(
            transposed([pack(column, self.bits) for column in transposed(self.zeros)]), dtype=torch.int32
        )

    def reference(self) -> list[list[float]]:
        return [
            [
                (self.values[row][column] - self.zeros[row][group]) * float(self.scales[row, group])
                for column, group in enumerate(self.groups)
            ]
            for row in range(self.rows)
        ]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 96])
def test_packed_weights_with_every_number_of_bits(bits: int, group_size: int) -> None:
    layer = Packed(bits, group_size)
    size = None if group_size == 96 else 32  # none: a scale for each row
    source = DequantisedSource(
        Stored(layer.tensors()), CompressedTensors(settings(num_bits=bits, group_size=size))
    )
    assert source.names == {"l.weight"}
    assert_reads(source, "l.weight", layer.reference(), (8, 32))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_zero_points_are_packed_along_the_rows(bits: int) -> None:
    layer = Packed(bits, 32).asymmetric()
    tensors = {**layer.tensors(), "l.weight_zero_point": layer.packed_zeros()}
    source = DequantisedSource(Stored(tensors), CompressedTensors(settings(num_bits=bits, group_size=32)))
    assert_reads(source, "l.weight", layer.reference(), (8, 32))


def test_zero_points_of_older_savers_are_not_packed() -> None:
    layer = Packed(4, 32).asymmetric()
    zeros = torch.tensor(layer.zeros, dtype=torch.int8) - layer.middle
    tensors = {**layer.tensors(), "l.weight_zero_point": zeros}
    source = DequantisedSource(Stored(tensors), CompressedTensors(settings(num_bits=4, group_size=32)))
    assert_reads(source, "l.weight", layer.reference(), (8, 32))


def test_act_order_gives_each_column_its_own_group() -> None:
    layer = Packed(4, 32)
    random.Random(2).shuffle(layer.groups)
    tensors = {**layer.tensors(), "l.weight_g_idx": torch.tensor(layer.groups, dtype=torch.int32)}
    source = DequantisedSource(Stored(tensors), CompressedTensors(settings(num_bits=4, group_size=32)))
    assert_reads(source, "l.weight", layer.reference(), (8, 32))
    tensors["l.weight_g_idx"].fill_(-1)  # stands for the groups in order
    source = DequantisedSource(Stored(tensors), CompressedTensors(settings(num_bits=4, group_size=32)))
    assert_reads(source, "l.weight", Packed(4, 32).reference(), (8, 32))


def test_columns_that_end_within_a_word() -> None:
    layer = Packed(4, 45, columns=45)
    source = DequantisedSource(Stored(layer.tensors()), CompressedTensors(settings(num_bits=4)))
    assert_reads(source, "l.weight", layer.reference(), (8, 32))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("strategy", "scales"), [("tensor", (1,)), ("channel", (20, 1)), ("group", (20, 3)), ("block", (2, 2))]
)
def test_weights_of_8_bits_with_every_strategy(
    dtype: torch.dtype, strategy: str, scales: tuple[int, ...]
) -> None:
    chance = torch.Generator().manual_seed(10)
    weight = torch.randint(-100, 100, (20, 24), generator=chance).to(dtype)
    scale = torch.rand(scales, generator=chance)
    zero = None
    tensors = {"l.weight": weight, "l.weight_scale": scale, "l.input_scale": torch.ones(1)}
    if dtype == torch.int8 and strategy == "channel":
        zero = tensors["l.weight_zero_point"] = torch.randint(-9, 9, scales, generator=chance).to(torch.int8)
    format = CompressedTensors(
        settings(
            num_bits=8,
            strategy=strategy,
            group_size=8,
            block_structure=[16, 16] if strategy == "block" else None,
        )
    )
    source = DequantisedSource(Stored(tensors), format)
    assert source.names == {"l.weight"}
    sizes = {"tensor": (20, 24), "channel": (1, 24), "group": (1, 8), "block": (16, 16)}[strategy]

    def at(values: torch.Tensor, row: int, column: int) -> float:
        return float(
            values.reshape(-1, 1 if values.dim() < 2 else values.shape[1])[
                row // sizes[0], column // sizes[1]
            ]
        )

    reference = [
        [
            (float(weight[row, column]) - (0 if zero is None else at(zero, row, column)))
            * at(scale, row, column)
            for column in range(24)
        ]
        for row in range(20)
    ]
    assert_reads(source, "l.weight", reference, sizes)


def test_a_layers_bits_are_of_the_group_that_names_it_best() -> None:
    four, eight, other = Packed(4, 32), Packed(8, 32), Packed(2, 32)
    tensors = {
        name.replace("l.", f"{stem}."): tensor
        for stem, layer in (("a.up", four), ("a.down", eight), ("b.up", other))
        for name, tensor in layer.tensors().items()
    }
    tensors["head.weight"] = torch.ones(2, 2)  # ignored: stored as it is
    groups = {
        "class": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32}},
        "pattern": {"targets": ["re:.*down$"], "weights": {"num_bits": 8, "group_size": 32}},
        "name": {"targets": ["b.up"], "weights": {"num_bits": 2, "group_size": 32}},
    }
    format = CompressedTensors({"config_groups": groups, "ignore": ["head"]})
    source = DequantisedSource(Stored(tensors), format)
    assert source.names == {"a.up.weight", "a.down.weight", "b.up.weight", "head.weight"}
    for name, layer in (("a.up", four), ("a.down", eight), ("b.up", other)):
        assert_reads(source, f"{name}.weight", layer.reference(), (8, 32))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"l.weight_shape": torch.tensor([13, 80])}, "weight_packed has shape"),
        ({"l.weight_shape": torch.tensor([13])}, "weight_packed has shape"),
        ({"l.weight_scale": torch.ones(7, 3)}, "weight_scale has shape"),
        ({"l.weight_scale": torch.ones(13, 2)}, "2 groups of scales for l.weight_packed"),
        ({"l.weight_scale": None}, "has l.weight_packed, but not l.weight_scale"),
        ({"l.weight_shape": None}, "has l.weight_packed, but not l.weight_shape"),
        ({"l.weight_g_idx": torch.full((96,), 3)}, "weight_g_idx doesn't fit"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_named(changes: dict[str, Any], named: str) -> None:
    tensors = {
        name: tensor for name, tensor in {**Packed(4, 32).tensors(), **changes}.items() if tensor is not None
    }
    with pytest.raises(CheckpointError, match=named):
        DequantisedSource(Stored(tensors), CompressedTensors(settings(num_bits=4, group_size=32))).tensor(
            "l.weight"
        )


def test_a_quantised_layer_that_no_group_names_is_refused() -> None:
    format = CompressedTensors(settings(["re:other"], num_bits=4, group_size=32))
    with pytest.raises(CheckpointError, match=r"config_groups don't name l, which is quantised"):
        DequantisedSource(Stored(Packed(4, 32).tensors()), format)
