"""MXFP4, against dequantising by the format's definition, one value at a time."""

from __future__ import annotations

import pytest
import torch

from engine.errors import CheckpointError
from engine.models.quantised.mxfp4 import MXFP4
from engine.models.quantised.source import DequantisedSource
from tests.engine.quantised.stored import Stored, assert_reads

EXPERTS, OUTPUTS, BLOCKS = 3, 6, 4


def e2m1(code: int) -> float:
    """The value of 4 bits: sign, two bits of exponent, one of fraction."""
    sign = -1.0 if code & 8 else 1.0
    exponent, fraction = code >> 1 & 3, code & 1
    return sign * (fraction * 0.5 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + fraction / 2))


def stored() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(7)
    return {
        "mlp.experts.gate_up_proj_blocks": torch.randint(
            0, 256, (EXPERTS, OUTPUTS, BLOCKS, 16), generator=chance, dtype=torch.uint8
        ),
        "mlp.experts.gate_up_proj_scales": torch.randint(
            110, 130, (EXPERTS, OUTPUTS, BLOCKS), generator=chance, dtype=torch.uint8
        ),
        "mlp.experts.gate_up_proj_bias": torch.ones(EXPERTS, OUTPUTS),
    }


def reference(expert: int) -> list[list[float]]:
    """[in, out] of one expert."""
    blocks, scales = (stored()[f"mlp.experts.gate_up_proj_{part}"].tolist() for part in ("blocks", "scales"))
    return [
        [
            e2m1(blocks[expert][row][column // 32][column % 32 // 2] >> (4 * (column % 2)) & 0xF)
            * 2.0 ** (scales[expert][row][column // 32] - 127)
            for row in range(OUTPUTS)
        ]
        for column in range(BLOCKS * 32)
    ]


class OfOneExpert(DequantisedSource):
    """An expert's matrix, whose rows are the second dimension of the tensor."""

    def shape(self, name: str) -> tuple[int, ...]:
        return super().shape(name)[1:]

    def tensor(self, name: str, *, rows: slice = slice(None), columns: slice = slice(None)) -> torch.Tensor:
        return super().tensor(name, rows=slice(1, 2), columns=rows)[0][:, columns]


def test_experts_are_read_transposed_as_the_model_has_them() -> None:
    source = DequantisedSource(Stored(stored()), MXFP4({}))
    assert source.names == {"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias"}
    assert source.shape("mlp.experts.gate_up_proj") == (EXPERTS, BLOCKS * 32, OUTPUTS)
    whole = source.tensor("mlp.experts.gate_up_proj")
    for expert in range(EXPERTS):
        assert torch.equal(whole[expert], torch.tensor(reference(expert)))


def test_parts_of_an_expert_across_blocks() -> None:
    assert_reads(OfOneExpert(Stored(stored()), MXFP4({})), "mlp.experts.gate_up_proj", reference(1), (32, 2))


def test_one_expert_is_read_without_the_others() -> None:
    tensors = Stored(stored())
    DequantisedSource(tensors, MXFP4({})).tensor("mlp.experts.gate_up_proj", rows=slice(2, 3))
    assert tensors.num_read == OUTPUTS * BLOCKS * 17


def test_parts_that_are_missing_or_do_not_fit_are_named() -> None:
    tensors = stored()
    scales = tensors.pop("mlp.experts.gate_up_proj_scales")
    with pytest.raises(
        CheckpointError, match=r"gate_up_proj_blocks, but not mlp.experts.gate_up_proj_scales"
    ):
        DequantisedSource(Stored(tensors), MXFP4({}))
    tensors["mlp.experts.gate_up_proj_scales"] = scales[:, 1:]
    with pytest.raises(CheckpointError, match=r"gate_up_proj_scales has \[3, 5, 4\] instead of"):
        DequantisedSource(Stored(tensors), MXFP4({}))
