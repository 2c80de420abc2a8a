"""Quantises weights into each format, by rounding to the nearest, and says what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tests.engine.quantised.test_awq import pack as pack_awq
from tests.engine.quantised.test_gptq import pack, transposed

Tensors = dict[str, torch.Tensor]
GROUP = 32


@dataclass(frozen=True)
class Quantiser:
    settings: Mapping[str, Any]
    quantise: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
    """weight [out, in] → what is stored, by the ends of names after the layer's; the weight it stands for"""


def rounded(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Groups with a zero point each: values [out, in], zeros and scales [out, groups], and the weight."""
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / ((1 << bits) - 1)).half()
    zeros = (-low / scales.float()).round().clamp(1, (1 << bits) - 1)
    values = ((groups / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, (1 << bits) - 1)
    dequantised = (values - zeros[..., None]) * scales.float()[..., None]
    return values.reshape(weight.shape).int(), zeros.int(), scales, dequantised.reshape(weight.shape)


def words(rows: list[list[int]], bits: int) -> torch.Tensor:
    return torch.tensor([pack(row, bits) for row in rows], dtype=torch.int32)


def gptq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """With act-order: columns in another order form the groups."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
    values, zeros, scales, dequantised = rounded(weight[:, order], 4)
    back = torch.argsort(order)
    stored = {
        "qweight": words(values[:, back].tolist(), 4).T.contiguous(),
        "qzeros": words((zeros - 1).T.tolist(), 4),
        "scales": scales.T.contiguous(),
        "g_idx": (back // GROUP).int(),
    }
    return stored, dequantised[:, back]


def awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    values, zeros, scales, dequantised = rounded(weight, 4)
    stored = {
        "qweight": torch.tensor([pack_awq(row) for row in values.T.tolist()], dtype=torch.int32),
        "qzeros": torch.tensor([pack_awq(row) for row in zeros.T.tolist()], dtype=torch.int32),
        "scales": scales.T.contiguous(),
    }
    return stored, dequantised


def packed(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    values, zeros, scales, dequantised = rounded(weight, 4)
    stored = {
        "weight_packed": words(values.tolist(), 4),
        "weight_shape": torch.tensor(weight.shape),
        "weight_scale": scales,
        "weight_zero_point": torch.tensor(
            transposed([pack(column, 4) for column in zeros.T.tolist()]), dtype=torch.int32
        ),
    }
    return stored, dequantised


def int8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    values = (weight / scale).round().to(torch.int8)
    return {"weight": values, "weight_scale": scale}, values.float() * scale


def fp8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Blocks of 32 by 64."""
    rows, columns = -(-weight.shape[0] // 32), -(-weight.shape[1] // 64)
    scale = torch.empty(rows, columns)
    values, dequantised = torch.empty_like(weight).to(torch.float8_e4m3fn), torch.empty_like(weight)
    for row in range(rows):
        for column in range(columns):
            part = (slice(row * 32, row * 32 + 32), slice(column * 64, column * 64 + 64))
            scale[row, column] = weight[part].abs().max() / 448
            values[part] = (weight[part] / scale[row, column]).to(torch.float8_e4m3fn)
            dequantised[part] = values[part].float() * scale[row, column]
    return {"weight": values, "weight_scale_inv": scale}, dequantised


def fp8_rows(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale}, values.float() * scale


def nf4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes = torch.linspace(-1, 1, 16)  # the file says what they are
    blocks = weight.reshape(-1, 64)
    maxima = blocks.abs().amax(1)
    nearest = (blocks / maxima[:, None]).unsqueeze(-1).sub(codes).abs().argmin(-1)
    pairs = nearest.reshape(-1, 2).to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    stored = {
        "weight": (pairs[:, :1] << 4) | pairs[:, 1:],
        "weight.absmax": maxima,
        "weight.quant_map": codes,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }
    return stored, (codes[nearest] * maxima[:, None]).reshape(weight.shape)


def rows_of_int8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    maxima = weight.abs().amax(1)
    values = (weight / maxima[:, None] * 127).round().to(torch.int8)
    return {"weight": values, "SCB": maxima}, values.float() * maxima[:, None] / 127


def _group(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}


QUANTISERS = {
    "fp8": Quantiser({"quant_method": "fp8", "weight_block_size": [32, 64]}, fp8),
    "fbgemm_fp8": Quantiser({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, fp8_rows),
    "modelopt": Quantiser({"quant_method": "modelopt", "quant_algo": "FP8"}, fp8_rows),
    "gptq": Quantiser(
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}, gptq
    ),
    "awq": Quantiser({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    "compressed-tensors": Quantiser(
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            **_group(num_bits=4, group_size=GROUP, strategy="group", symmetric=False, type="int"),
        },
        packed,
    ),
    "compressed-tensors-int8": Quantiser(
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            **_group(num_bits=8, strategy="channel", type="int"),
        },
        int8,
    ),
    "bitsandbytes": Quantiser({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4),
    "bitsandbytes-int8": Quantiser({"quant_method": "bitsandbytes", "load_in_8bit": True}, rows_of_int8),
}
