"""FP8, against scaling by the format's definition, one value at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.models.quantised.fp8 import FP8
from engine.models.quantised.source import DequantisedSource
from tests.engine.quantised.stored import Stored, assert_reads

ROWS, COLUMNS = 200, 150  # no multiples of a block


def e4m3(byte: int) -> float:
    """The value of a float8_e4m3fn, by its definition."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, fraction = byte >> 3 & 0xF, byte & 7
    return sign * (2.0**-6 * fraction / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + fraction / 8))


def weight() -> tuple[torch.Tensor, list[list[float]]]:
    bytes_ = torch.randint(
        0, 256, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(4), dtype=torch.uint8
    )
    bytes_[(bytes_ & 0x7F) == 0x7F] = 0  # NaN
    return bytes_.view(torch.float8_e4m3fn), [[e4m3(byte) for byte in row] for row in bytes_.tolist()]


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) / 100 + 0.001


def source(scale_name: str, scale: torch.Tensor, settings: dict[str, Any]) -> DequantisedSource:
    stored = {
        "layer.weight": weight()[0],
        scale_name: scale,
        "layer.input_scale": torch.ones(1),
        "layer.k_scale": torch.ones(1),
        "norm.weight": torch.ones(3),
    }
    return DequantisedSource(Stored(stored), FP8(settings))


@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_blocks_as_deepseek_and_qwen_save_them(block: tuple[int, int]) -> None:
    scale = scales(math.ceil(ROWS / block[0]), math.ceil(COLUMNS / block[1]))
    dequantised = source("layer.weight_scale_inv", scale, {"weight_block_size": list(block)})
    assert dequantised.names == {"layer.weight", "norm.weight"}
    reference = [
        [value * float(scale[row // block[0], column // block[1]]) for column, value in enumerate(values)]
        for row, values in enumerate(weight()[1])
    ]
    assert_reads(dequantised, "layer.weight", reference, block)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_for_the_whole_tensor(shape: tuple[int, ...]) -> None:
    dequantised = source("layer.weight_scale", torch.full(shape, 0.25), {})
    reference = [[value * 0.25 for value in values] for values in weight()[1]]
    assert_reads(dequantised, "layer.weight", reference, (128, 128))


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
def test_a_scale_for_each_row_as_fbgemm_saves_it(shape: tuple[int, ...]) -> None:
    scale = scales(*shape)
    dequantised = source("layer.weight_scale", scale, {})
    reference = [
        [value * float(scale.flatten()[row]) for value in values] for row, values in enumerate(weight()[1])
    ]
    assert_reads(dequantised, "layer.weight", reference, (128, 128))


def test_blocks_as_modelopt_saves_them() -> None:
    scale = scales(2, 1, 2, 1)
    dequantised = source("layer.weight_scale", scale, {"quantization": {"quant_algo": "fp8_pb_wo"}})
    reference = [
        [value * float(scale[row // 128, 0, column // 128, 0]) for column, value in enumerate(values)]
        for row, values in enumerate(weight()[1])
    ]
    assert_reads(dequantised, "layer.weight", reference, (128, 128))


def test_experts_in_one_tensor_have_blocks_in_their_last_two_dimensions() -> None:
    experts = torch.randn(3, 40, 70, generator=torch.Generator().manual_seed(6)).to(torch.float8_e4m3fn)
    scale = scales(3, 2, 3)
    stored = Stored({"experts.down_proj": experts, "experts.down_proj_scale_inv": scale})
    dequantised = DequantisedSource(stored, FP8({"weight_block_size": [32, 32]}))
    part = dequantised.tensor("experts.down_proj", rows=slice(1, 3), columns=slice(30, 35))
    for expert in range(2):
        for row in range(5):
            for column in range(70):
                expected = float(experts[expert + 1, row + 30, column]) * float(
                    scale[expert + 1, (row + 30) // 32, column // 32]
                )
                assert math.isclose(float(part[expert, row, column]), expected, rel_tol=1e-5)


def test_layers_that_were_not_converted_are_read_as_stored() -> None:
    stored = {
        "a.weight": weight()[0],
        "a.weight_scale": torch.ones(1),
        "head.weight": torch.ones(2, 3).bfloat16(),
    }
    dequantised = DequantisedSource(Stored(stored), FP8({"modules_to_not_convert": ["head"]}))
    assert dequantised.tensor("head.weight").dtype == torch.bfloat16
    assert dequantised.num_quantised == 1


def test_a_weight_in_8_bits_without_a_scale_is_refused() -> None:
    dequantised = DequantisedSource(Stored({"layer.weight": weight()[0]}), FP8({}))
    with pytest.raises(CheckpointError, match=r"stores layer.weight as float8_e4m3fn, but no scale for it"):
        dequantised.tensor("layer.weight")


def test_scales_that_do_not_fit_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"3 scales in dimension 0 of layer.weight_scale_inv"):
        source("layer.weight_scale_inv", scales(3, 2), {"weight_block_size": [128, 128]})
    with pytest.raises(CheckpointError, match=r"7 scales in dimension 0 of layer.weight_scale"):
        source("layer.weight_scale", scales(7), {})
