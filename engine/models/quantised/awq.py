"""AWQ in AutoAWQ's layout "gemm".

For a layer [out, in]: `qweight` int32 [in, out / 8] and `qzeros` int32 [groups, out / 8], each word with
eight values of 4 bits along the output, in an order of its own; `scales` [groups, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.models.quantised.grouped import dequantise_groups, group_size
from engine.models.quantised.packing import bounds, unpack, words_of
from engine.models.quantised.parts import check_dimensions, check_shape, check_words
from engine.models.quantised.source import Contents
from engine.models.tensor_source import TensorSource

_BITS, _PER_WORD = 4, 8
_PARTS = ("qweight", "qzeros", "scales")


class AWQ:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: quantization_config, checked by engine/checkpoint/quantisation.py."""
        self._group_size = settings.get("group_size", settings.get("q_group_size"))

    def contents(self, source: TensorSource) -> Contents:
        stems = [name.removesuffix("qweight") for name in source.names if name.endswith(".qweight")]
        quantised = {f"{stem}weight": _tensor(source, stem, self._group_size) for stem in stems}
        return Contents(quantised, frozenset(f"{stem}{part}" for stem in stems for part in _PARTS))


def _tensor(source: TensorSource, stem: str, setting: object) -> AWQTensor:
    for part in _PARTS:
        if f"{stem}{part}" not in source.names:
            raise CheckpointError(f"The checkpoint has {stem}qweight, but not {stem}{part}.")
    num_inputs, num_words = check_words(source, f"{stem}qweight")
    num_groups, _ = check_dimensions(source, f"{stem}scales", 2)
    check_words(source, f"{stem}qzeros")
    expected = {"scales": (num_groups, num_words * _PER_WORD), "qzeros": (num_groups, num_words)}
    for part, shape in expected.items():
        check_shape(source, f"{stem}{part}", shape)
    size = group_size(setting, num_inputs, num_groups, f"{stem}qweight")
    return AWQTensor(source, stem, (num_words * _PER_WORD, num_inputs), size)


@dataclass(frozen=True, slots=True)
class AWQTensor:
    source: TensorSource
    stem: str  # the layer's name and a dot
    shape: tuple[int, int]
    group_size: int

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        first_row, end_row = bounds(rows, self.shape[0])
        start, stop = bounds(columns, self.shape[1])
        words, first = words_of(first_row, end_row, _BITS)
        groups = slice(start // self.group_size, -(-stop // self.group_size))
        wanted = slice(first_row - first, end_row - first)
        values = _unpack(self.source.tensor(f"{self.stem}qweight", rows=slice(start, stop), columns=words))
        zeros = _unpack(self.source.tensor(f"{self.stem}qzeros", rows=groups, columns=words))
        scales = self.source.tensor(f"{self.stem}scales", rows=groups, columns=slice(first_row, end_row))
        group_of = torch.arange(start, stop) // self.group_size - groups.start
        return dequantise_groups(values[:, wanted].T, scales.T, zeros[:, wanted].T, group_of).contiguous()


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """[rows, words] → [rows, values]. A word has its values in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    in_order_of_bits = unpack(words, _BITS).reshape(*words.shape, 2, 4)  # even values, odd values
    return in_order_of_bits.transpose(2, 3).reshape(words.shape[0], words.shape[1] * _PER_WORD)
