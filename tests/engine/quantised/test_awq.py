"""AWQ, against packing and dequantising by the format's definition, one value at a time."""

from __future__ import annotations

import random

import pytest
import torch

from engine.errors import CheckpointError
from engine.models.quantised.awq import AWQ
from engine.models.quantised.source import DequantisedSource
from tests.engine.quantised.stored import Stored, assert_reads
from tests.engine.quantised.test_gptq import signed

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of AutoAWQ's packing: which value goes to which place of a word
SETTINGS = {"bits": 4, "group_size": 32, "version": "gemm"}


def pack(values: list[int]) -> list[int]:
    return [
        signed(sum(values[at + ORDER[place]] << (4 * place) for place in range(8)))
        for at in range(0, len(values), 8)
    ]


def layer(inputs: int = 96, outputs: int = 40) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    chance = random.Random(2)
    values = [[chance.randrange(16) for _ in range(outputs)] for _ in range(inputs)]
    zeros = [[chance.randrange(16) for _ in range(outputs)] for _ in range(inputs // 32)]
    scales = torch.rand(inputs // 32, outputs, generator=torch.Generator().manual_seed(3)).half() / 50
    stored = {
        "layer.qweight": torch.tensor([pack(row) for row in values], dtype=torch.int32),
        "layer.qzeros": torch.tensor([pack(row) for row in zeros], dtype=torch.int32),
        "layer.scales": scales,
    }
    reference = [
        [
            (values[column][row] - zeros[column // 32][row]) * float(scales[column // 32, row])
            for column in range(inputs)
        ]
        for row in range(outputs)
    ]
    return stored, reference


def test_weights_are_read_in_their_interleaved_order() -> None:
    stored, reference = layer()
    source = DequantisedSource(Stored({**stored, "norm.weight": torch.ones(4)}), AWQ(SETTINGS))
    assert source.names == {"layer.weight", "norm.weight"}
    assert_reads(source, "layer.weight", reference, (8, 32))


def test_settings_of_autoawq_itself_name_the_group_size_differently() -> None:
    stored, reference = layer()
    source = DequantisedSource(Stored(stored), AWQ({"w_bit": 4, "q_group_size": 32, "zero_point": True}))
    assert_reads(source, "layer.weight", reference, (8, 32))


@pytest.mark.parametrize("part", ["scales", "qzeros"])
def test_missing_and_misshapen_parts_are_named(part: str) -> None:
    stored, _ = layer()
    whole = stored.pop(f"layer.{part}")
    with pytest.raises(CheckpointError, match=f"has layer.qweight, but not layer.{part}"):
        DequantisedSource(Stored(stored), AWQ(SETTINGS))
    stored[f"layer.{part}"] = whole[:, 1:]
    with pytest.raises(CheckpointError, match=f"layer.{part} has shape"):
        DequantisedSource(Stored(stored), AWQ(SETTINGS))


def test_groups_that_do_not_fit_the_settings_are_refused() -> None:
    stored, _ = layer()
    with pytest.raises(
        CheckpointError, match=r"3 groups of scales for layer.qweight, which don't fit 96 columns"
    ):
        DequantisedSource(Stored(stored), AWQ({**SETTINGS, "group_size": 16}))
