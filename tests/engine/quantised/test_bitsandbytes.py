"""bitsandbytes, against dequantising by the format's definition, one value at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.models.quantised.bitsandbytes import BitsAndBytes
from engine.models.quantised.source import DequantisedSource
from tests.engine.quantised.stored import Stored, assert_reads

ROWS, COLUMNS, BLOCK, NESTED = 15, 33, 64, 4  # rows begin in the middle of bytes and of blocks
COUNT = ROWS * COLUMNS
CODES = [code / 7.5 - 1.0 for code in range(16)]  # the file has the values: any will do


def stored(*, nested: bool, kind: str = "nf4", **changes: Any) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(8)
    num_blocks = -(-COUNT // BLOCK)
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": BLOCK,
        "dtype": "bfloat16",
        "shape": [ROWS, COLUMNS],
    }
    tensors = {
        "l.weight": torch.randint(0, 256, (-(-COUNT // 2), 1), generator=chance, dtype=torch.uint8),
        "l.weight.quant_map": torch.tensor(CODES),
        "l.weight.absmax": torch.rand(num_blocks, generator=chance),
    }
    if nested:
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": 0.125}
        tensors["l.weight.absmax"] = torch.randint(0, 256, (num_blocks,), generator=chance, dtype=torch.uint8)
        tensors["l.weight.nested_absmax"] = torch.rand(-(-num_blocks // NESTED), generator=chance)
        tensors["l.weight.nested_quant_map"] = torch.linspace(-1, 1, 256)
    state |= changes
    text = json.dumps({name: value for name, value in state.items() if value is not None}).encode()
    tensors[f"l.weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    return tensors


def reference(tensors: dict[str, torch.Tensor]) -> list[list[float]]:
    packed = tensors["l.weight"].flatten().tolist()
    maxima = tensors["l.weight.absmax"].tolist()
    if "l.weight.nested_absmax" in tensors:
        codes, outer = (tensors[f"l.weight.nested_{part}"].tolist() for part in ("quant_map", "absmax"))
        maxima = [codes[code] * outer[block // NESTED] + 0.125 for block, code in enumerate(maxima)]
    flat = []
    for at in range(COUNT):
        byte = packed[at // 2]
        code = byte & 0xF if at % 2 else byte >> 4
        flat.append(CODES[code] * maxima[at // BLOCK])
    return [flat[at : at + COLUMNS] for at in range(0, COUNT, COLUMNS)]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_with_and_without_double_quantisation(kind: str, nested: bool) -> None:
    tensors = stored(nested=nested, kind=kind)
    source = DequantisedSource(Stored({**tensors, "norm.weight": torch.ones(2)}), BitsAndBytes({}))
    assert source.names == {"l.weight", "norm.weight"}
    assert_reads(source, "l.weight", reference(tensors), (2, 31))


def test_int8_rows_are_scaled_by_their_maximum() -> None:
    weight = torch.randint(-127, 128, (10, 20), generator=torch.Generator().manual_seed(9), dtype=torch.int8)
    maxima = torch.linspace(0.1, 2, 10)
    tensors = {"l.weight": weight, "l.SCB": maxima, "l.weight_format": torch.tensor(0, dtype=torch.uint8)}
    source = DequantisedSource(Stored(tensors), BitsAndBytes({}))
    assert source.names == {"l.weight"}
    expected = [[value * float(maxima[row]) / 127 for value in weight[row].tolist()] for row in range(10)]
    assert_reads(source, "l.weight", expected, (5, 10))


def test_int8_in_the_order_of_a_gpu_is_refused() -> None:
    weight = torch.zeros(2, 2, dtype=torch.int8)
    tensors = {
        "l.weight": weight,
        "l.SCB": torch.ones(2),
        "l.weight_format": torch.tensor([2], dtype=torch.uint8),
    }
    with pytest.raises(CheckpointError, match=r"order of a GPU's tiles"):
        DequantisedSource(Stored(tensors), BitsAndBytes({}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shape": [ROWS, COLUMNS + 2]}, "don't fit shape"),
        ({"shape": [ROWS, -1]}, "don't fit shape"),
        ({"blocksize": 0}, "don't fit shape"),
        ({"blocksize": 32}, "don't fit shape"),
        ({"blocksize": None}, "can't be read: KeyError"),
        ({"shape": 5}, "can't be read: TypeError"),
    ],
)
def test_a_state_that_does_not_fit_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        DequantisedSource(Stored(stored(nested=False, **changes)), BitsAndBytes({}))


@pytest.mark.parametrize("part", ["", ".absmax", ".quant_map", ".nested_quant_map"])
def test_missing_parts_are_named(part: str) -> None:
    tensors = stored(nested=True)
    del tensors[f"l.weight{part}"]
    with pytest.raises(CheckpointError, match=f"but not l.weight{part}[.]"):
        DequantisedSource(Stored(tensors), BitsAndBytes({}))
