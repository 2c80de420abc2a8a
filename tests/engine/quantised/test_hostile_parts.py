"""Quantised layers with a part of another shape or type: refused by the part's name, never read as noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.models.quantised.awq import AWQ
from engine.models.quantised.bitsandbytes import BitsAndBytes
from engine.models.quantised.compressed_tensors import CompressedTensors
from engine.models.quantised.fp8 import FP8
from engine.models.quantised.gptq import GPTQ
from engine.models.quantised.source import DequantisedSource, WeightFormat
from tests.engine.quantised import test_awq, test_bitsandbytes, test_gptq
from tests.engine.quantised.stored import Stored
from tests.engine.quantised.test_compressed_tensors import Packed, settings

Tensors = dict[str, torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]


def _packed() -> Tensors:
    layer = Packed(4, 32).asymmetric()
    groups = torch.tensor(layer.groups, dtype=torch.int32)
    return {**layer.tensors(), "l.weight_zero_point": layer.packed_zeros(), "l.weight_g_idx": groups}


def _plain_zeros() -> Tensors:
    layer = Packed(4, 32).asymmetric()
    return {
        **layer.tensors(),
        "l.weight_zero_point": torch.tensor(layer.zeros, dtype=torch.int8) - layer.middle,
    }


def _int8(*scales: int) -> Tensors:
    return {"l.weight": torch.ones(20, 24, dtype=torch.int8), "l.weight_scale": torch.rand(scales)}


_FP8: Tensors = {
    "l.weight": torch.ones(200, 150).to(torch.float8_e4m3fn),
    "l.weight_scale_inv": torch.rand(2, 2),
}
_ASYMMETRIC = settings(num_bits=4, group_size=32, symmetric=False)

LAYERS: Mapping[str, tuple[WeightFormat, Tensors]] = {
    "awq": (AWQ(test_awq.SETTINGS), test_awq.layer()[0]),
    "gptq": (
        GPTQ({"bits": 4, "group_size": 32, "sym": False}),
        {name: t for name, t in test_gptq.Layer(4, 32).tensors(1).items() if name != "layer.bias"},
    ),
    "bitsandbytes": (BitsAndBytes({}), test_bitsandbytes.stored(nested=True)),
    "packed": (CompressedTensors(_ASYMMETRIC), _packed()),
    "packed, plain zero points": (CompressedTensors(_ASYMMETRIC), _plain_zeros()),
    "channels": (CompressedTensors(settings(num_bits=8, strategy="channel")), _int8(20, 1)),
    "groups": (CompressedTensors(settings(num_bits=8, strategy="group", group_size=8)), _int8(20, 3)),
    "blocks": (FP8({"weight_block_size": [128, 128]}), _FP8),
}
CHANGES: Mapping[str, Change] = {
    "a number": lambda t: t.flatten()[0].clone(),
    "none": lambda t: t[:0],
    "a row less": lambda t: t[:-1],
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "a column less": lambda t: t[:, :-1] if t.dim() > 1 else t[:-1],
    "a dimension more": lambda t: torch.stack([t, t]),
    "turned": lambda t: t.T if t.dim() > 1 else t[1:],
}


def _cases() -> Iterator[Any]:
    for layer, (_, tensors) in LAYERS.items():
        for part in tensors:
            if part in ("l.weight", "layer.qweight") or "quant_state" in part:
                continue  # with another shape they are of another layer, which the model's shapes tell
            for change in CHANGES:
                yield pytest.param(layer, part, change, id=f"{layer}-{part}-{change}")


@pytest.mark.parametrize(("layer", "part", "change"), list(_cases()))
def test_a_part_of_another_shape_is_refused_by_name(layer: str, part: str, change: str) -> None:
    format, tensors = LAYERS[layer]
    changed = CHANGES[change](tensors[part]).contiguous()
    if changed.shape == tensors[part].shape or (
        not changed.dim() and layer in ("channels", "groups", "blocks")
    ):
        return  # nothing has changed; one scale for the whole tensor is a scale
    with pytest.raises(CheckpointError) as caught:
        DequantisedSource(Stored({**tensors, part: changed}), format).tensor("l.weight")
    stem = part.partition(".")[0]
    assert f"{stem}." in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ("awq", "layer.qweight"),
        ("awq", "layer.qzeros"),
        ("gptq", "layer.qweight"),
        ("gptq", "layer.qzeros"),
        ("packed", "l.weight_packed"),
        ("packed", "l.weight_zero_point"),
    ],
)
def test_words_of_another_type_are_refused(layer: str, part: str, dtype: torch.dtype) -> None:
    format, tensors = LAYERS[layer]
    with pytest.raises(CheckpointError, match=f"stores {part} as {str(dtype)[6:]}, but packed values"):
        DequantisedSource(Stored({**tensors, part: tensors[part].to(dtype)}), format)


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ("bitsandbytes", "l.weight.nested_absmax"),  # without it, codes would be taken for maxima
        ("packed", "l.weight_zero_point"),
        ("gptq", "layer.qzeros"),
    ],
)
def test_a_missing_part_that_the_settings_tell_of_is_refused(layer: str, part: str) -> None:
    format, tensors = LAYERS[layer]
    with pytest.raises(CheckpointError, match=f"but not {part}"):
        DequantisedSource(Stored({name: t for name, t in tensors.items() if name != part}), format)


@pytest.mark.parametrize(
    ("layer", "scales"),
    [("blocks", (1, 2)), ("blocks", (2, 1)), ("groups", (1, 3)), ("groups", (20, 1))],
)
def test_scales_of_some_blocks_are_not_those_of_all(layer: str, scales: tuple[int, int]) -> None:
    format, tensors = LAYERS[layer]
    scale = next(name for name in tensors if "scale" in name)
    with pytest.raises(CheckpointError, match=f"1 scales in dimension . of {scale}"):
        DequantisedSource(Stored({**tensors, scale: torch.rand(scales)}), format)


def test_asymmetric_weights_of_8_bits_need_zero_points() -> None:
    format = CompressedTensors(settings(num_bits=8, strategy="channel", symmetric=False))
    with pytest.raises(CheckpointError, match=r"has l\.weight, but not l\.weight_zero_point"):
        DequantisedSource(Stored(_int8(20, 1)), format)


def test_a_layer_with_a_scale_for_each_row_beside_layers_in_blocks() -> None:
    tensors = {"l.weight": _FP8["l.weight"], "l.weight_scale": torch.arange(200.0).reshape(200, 1)}
    source = DequantisedSource(Stored(tensors), FP8({"weight_block_size": [128, 128]}))
    assert torch.equal(source.tensor("l.weight")[:, 0], torch.arange(200.0))
