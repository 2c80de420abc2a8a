"""GPTQ as AutoGPTQ and GPTQModel save it, in both of its versions.

For a layer [out, in]: `qweight` int32 [in * bits / 32, out], packed along the input; `qzeros` int32
[groups, out * bits / 32], packed along the output; `scales` [groups, out]; `g_idx` int32 [in], each input's
group: in order, or with act-order (desc_act) in any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.models.quantised.grouped import dequantise_groups, group_size
from engine.models.quantised.packing import bounds, unpack, words_of
from engine.models.quantised.parts import check_dimensions, check_shape, check_words
from engine.models.quantised.source import Contents
from engine.models.tensor_source import TensorSource

_PARTS = ("qweight", "qzeros", "scales", "g_idx")


class GPTQ:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: quantization_config, checked by engine/checkpoint/quantisation.py."""
        self._bits = int(settings["bits"])
        self._group_size = settings.get("group_size")
        self._symmetric = bool(settings.get("sym", True))
        # Version 1 stores zero points less one.
        self._offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def contents(self, source: TensorSource) -> Contents:
        stems = [name.removesuffix("qweight") for name in source.names if name.endswith(".qweight")]
        quantised = {f"{stem}weight": self._tensor(source, stem) for stem in stems}
        return Contents(quantised, frozenset(f"{stem}{part}" for stem in stems for part in _PARTS))

    def _tensor(self, source: TensorSource, stem: str) -> GPTQTensor:
        if f"{stem}scales" not in source.names:
            raise CheckpointError(f"The checkpoint has {stem}qweight, but not {stem}scales.")
        packed, num_outputs = check_words(source, f"{stem}qweight")
        num_groups, _ = check_dimensions(source, f"{stem}scales", 2)
        bits = self._bits
        if f"{stem}g_idx" in source.names:  # some layers may have more bits than the others (`dynamic`)
            (num_inputs,) = check_dimensions(source, f"{stem}g_idx", 1)
            bits = packed * 32 // max(1, num_inputs)
        shape = (num_outputs, packed * 32 // max(1, bits))
        size = 0
        if f"{stem}g_idx" not in source.names:
            size = group_size(self._group_size, shape[1], num_groups, f"{stem}qweight")
        tensor = GPTQTensor(source, stem, bits, self._symmetric, self._offset, size, shape)
        tensor.check()
        return tensor


@dataclass(frozen=True)
class GPTQTensor:
    source: TensorSource
    stem: str  # the layer's name and a dot
    bits: int
    symmetric: bool
    offset: int  # of the zero points: 1 in version 1, 0 in version 2
    group_size: int  # 0: g_idx tells
    shape: tuple[int, int]

    def check(self) -> None:
        """Raise CheckpointError unless the parts' shapes fit each other."""
        num_outputs, num_inputs = self.shape
        if self.bits not in (2, 3, 4, 8):
            raise CheckpointError(
                f"The checkpoint's {self.stem}qweight has {self.bits} bits per entry of g_idx, not "
                "2, 3, 4 or 8."
            )
        num_groups = self.source.shape(f"{self.stem}scales")[0]
        expected = {
            "scales": (num_groups, num_outputs),
            "qzeros": (num_groups, num_outputs * self.bits // 32),
            "g_idx": (num_inputs,),
        }
        for part, shape in expected.items():
            if f"{self.stem}{part}" in self.source.names:
                check_shape(self.source, f"{self.stem}{part}", shape)
        if f"{self.stem}qzeros" in self.source.names:
            check_words(self.source, f"{self.stem}qzeros")
        elif not self.symmetric:
            raise CheckpointError(f"The checkpoint has {self.stem}qweight, but not {self.stem}qzeros.")

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        outputs = slice(*bounds(rows, self.shape[0]))
        start, stop = bounds(columns, self.shape[1])
        words, first = words_of(start, stop, self.bits)
        packed = self.source.tensor(f"{self.stem}qweight", rows=words, columns=outputs)
        values = unpack(packed.T, self.bits)[:, start - first : stop - first]
        scales = self.source.tensor(f"{self.stem}scales", columns=outputs).T
        return dequantise_groups(values, scales, self._zeros(outputs), self._groups[start:stop])

    def _zeros(self, outputs: slice) -> torch.Tensor | int:
        """Zero points [outputs, groups]."""
        middle = 1 << (self.bits - 1)
        # Savers disagree about version 1's zero points of 3 bits; without asymmetry there's only one.
        if f"{self.stem}qzeros" not in self.source.names or (self.symmetric and self.bits == 3):
            return middle
        words, first = words_of(outputs.start, outputs.stop, self.bits)
        packed = self.source.tensor(f"{self.stem}qzeros", columns=words)
        if self.offset and self.bits != 3:  # as GPTQModel does: it subtracts from words, with borrows
            ones = sum(1 << at for at in range(0, 32, self.bits))
            packed = packed + torch.tensor(ones, dtype=torch.int32)
        zeros = unpack(packed, self.bits)
        if self.offset and self.bits == 3:
            zeros = (zeros + 1) & 7
        return zeros[:, outputs.start - first : outputs.stop - first].T

    @cached_property
    def _groups(self) -> torch.Tensor:
        if f"{self.stem}g_idx" in self.source.names:
            groups = self.source.tensor(f"{self.stem}g_idx").long()
        else:
            groups = torch.arange(self.shape[1]) // self.group_size
        num_groups = self.source.shape(f"{self.stem}scales")[0]
        if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < num_groups:
            raise CheckpointError(
                f"The checkpoint's {self.stem}g_idx names groups {int(groups.min())} to {int(groups.max())}, "
                f"but there are {num_groups}."
            )
        return groups
