"""compressed-tensors: weights in int8 or float8 with scales, or integers of a few bits packed into words.

For a layer [out, in]: `weight` with `weight_scale` and perhaps `weight_zero_point`; or `weight_packed`
int32 [out, in * bits / 32] with `weight_shape`, `weight_scale` [out, groups], if asymmetric
`weight_zero_point` (packed along the output), and `weight_g_idx` [in] with act-order. Layers that are
ignored have a plain weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.models.quantised.grouped import dequantise_groups, group_size
from engine.models.quantised.packing import bounds, unpack, words_for, words_of
from engine.models.quantised.parts import check_dimensions, check_shape, check_words
from engine.models.quantised.scaled import ScaledTensor
from engine.models.quantised.source import Contents, QuantisedTensor
from engine.models.tensor_source import TensorSource

_PACKED = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")
_SCALED = ("weight_scale", "weight_zero_point", "weight_g_idx")


class CompressedTensors:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: quantization_config, checked by engine/checkpoint/quantisation.py."""
        self._groups: list[tuple[list[str], Mapping[str, Any]]] = [
            (group.get("targets") or ["Linear"], {**group["weights"], "with": group.get("input_activations")})
            for group in settings["config_groups"].values()
            if group.get("weights") is not None
        ]

    def contents(self, source: TensorSource) -> Contents:
        quantised: dict[str, QuantisedTensor] = {}
        parts: set[str] = set()
        for name in source.names:
            if name.endswith(".weight_packed"):
                stem = name.removesuffix("weight_packed")
                quantised[f"{stem}weight"] = _packed(source, stem, self._weights_of(stem))
                parts |= {f"{stem}{part}" for part in _PACKED}
            elif name.endswith(".weight_scale") and name.removesuffix("_scale") in source.names:
                stem = name.removesuffix("weight_scale")
                quantised[f"{stem}weight"] = self._scaled(source, stem)
                parts |= {f"{stem}{part}" for part in _SCALED}
        return Contents(quantised, frozenset(parts))

    def _scaled(self, source: TensorSource, stem: str) -> ScaledTensor:
        weights = self._weights_of(stem)
        blocks: Mapping[str, Any] = {
            "block": weights.get("block_structure"),
            "group": (1, weights.get("group_size")),
        }
        block = blocks.get(str(weights.get("strategy")))
        zero_point = f"{stem}weight_zero_point"
        _check_has_zero_points(source, stem, "weight", weights)
        tensor = ScaledTensor(
            source,
            f"{stem}weight",
            f"{stem}weight_scale",
            zero_point if zero_point in source.names else None,
            None if block is None else (int(block[0]), int(block[1])),
            is_of_products=_are_alike(weights, weights["with"]),
        )
        tensor.check()
        return tensor

    def _weights_of(self, stem: str) -> Mapping[str, Any]:
        """The settings for a layer: a group that names it, one whose pattern fits, or one for its class."""
        layer = stem.removesuffix(".")
        for fits in (_is_named, _fits_pattern, _is_of_class):
            for targets, weights in self._groups:
                if any(fits(str(target), layer) for target in targets):
                    return weights
        raise CheckpointError(f"The checkpoint's config_groups don't name {layer}, which is quantised.")


def _are_alike(weights: Mapping[str, Any], activations: Mapping[str, Any] | None) -> bool:
    """Whether activations are quantised as these weights are: without zero points, in the same type."""
    if activations is None or weights.get("symmetric") is False or activations.get("symmetric") is False:
        return False
    return all(weights.get(key) == activations.get(key) for key in ("num_bits", "type"))


def _check_has_zero_points(source: TensorSource, stem: str, part: str, weights: Mapping[str, Any]) -> None:
    """Raises CheckpointError."""
    if weights.get("symmetric") is False and f"{stem}weight_zero_point" not in source.names:
        raise CheckpointError(f"The checkpoint has {stem}{part}, but not {stem}weight_zero_point.")


def _is_named(target: str, layer: str) -> bool:
    return target == layer


def _fits_pattern(target: str, layer: str) -> bool:
    return target.startswith("re:") and re.match(target.removeprefix("re:"), layer) is not None


def _is_of_class(target: str, layer: str) -> bool:
    """A class's name has no dots. The layer has quantised weights, so that it is of one that is quantised."""
    return not target.startswith("re:") and "." not in target


def _packed(source: TensorSource, stem: str, weights: Mapping[str, Any]) -> PackedTensor:
    bits = int(weights["num_bits"])
    for part in ("weight_shape", "weight_scale"):
        if f"{stem}{part}" not in source.names:
            raise CheckpointError(f"The checkpoint has {stem}weight_packed, but not {stem}{part}.")
    shape = tuple(int(size) for size in source.tensor(f"{stem}weight_shape").flatten().tolist())
    stored = check_words(source, f"{stem}weight_packed")
    if len(shape) != 2 or stored != (shape[0], words_for(shape[1], bits)):
        raise CheckpointError(
            f"The checkpoint's {stem}weight_packed has shape {list(stored)}, which doesn't fit {list(shape)} "
            f"with {bits} bits, as weight_shape has it."
        )
    scale = source.shape(f"{stem}weight_scale")
    is_one = all(size == 1 for size in scale)
    if len(scale) > 2 or not (is_one or scale[0] == shape[0]):
        raise CheckpointError(
            f"The checkpoint's {stem}weight_scale has shape {list(scale)}, which doesn't fit {list(shape)}."
        )
    num_groups = scale[1] if len(scale) == 2 else 1
    size = group_size(weights.get("group_size"), shape[1], num_groups, f"{stem}weight_packed")
    _check_has_zero_points(source, stem, "weight_packed", weights)
    if f"{stem}weight_g_idx" in source.names:
        check_dimensions(source, f"{stem}weight_g_idx", 1)
    tensor = PackedTensor(source, stem, bits, size, (shape[0], shape[1]))
    tensor.check_zero_points(num_groups)
    return tensor


@dataclass(frozen=True)
class PackedTensor:
    source: TensorSource
    stem: str  # the layer's name and a dot
    bits: int
    group_size: int
    shape: tuple[int, int]

    def check_zero_points(self, num_groups: int) -> None:
        """Raises CheckpointError."""
        name = f"{self.stem}weight_zero_point"
        if name not in self.source.names:
            return
        check_dimensions(self.source, name, 2)
        if self._has_plain_zeros:
            check_shape(self.source, name, (self.shape[0], num_groups))
        else:
            check_words(self.source, name)
            check_shape(self.source, name, (words_for(self.shape[0], self.bits), num_groups))

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        part = slice(*bounds(rows, self.shape[0]))
        start, stop = bounds(columns, self.shape[1])
        words, first = words_of(start, stop, self.bits)
        packed = self.source.tensor(f"{self.stem}weight_packed", rows=part, columns=words)
        values = unpack(packed, self.bits)[:, start - first : stop - first]
        return dequantise_groups(values, self._scales(part), self._zeros(part), self._groups[start:stop])

    def _scales(self, rows: slice) -> torch.Tensor:
        scales = self.source.tensor(f"{self.stem}weight_scale")
        if scales.dim() < 2:
            scales = scales.reshape(-1, 1)
        return scales.expand(self.shape[0], -1)[rows]

    def _zeros(self, rows: slice) -> torch.Tensor | int:
        """Zero points [rows, groups], as packed: with the middle of the range added, as to the values."""
        name = f"{self.stem}weight_zero_point"
        middle = 1 << (self.bits - 1)
        if name not in self.source.names:
            return middle
        if self._has_plain_zeros:
            return self.source.tensor(name).int()[rows] + middle
        words, first = words_of(rows.start, rows.stop, self.bits)
        zeros = unpack(self.source.tensor(name, rows=words).T, self.bits).T
        return zeros[rows.start - first : rows.stop - first]

    @cached_property
    def _has_plain_zeros(self) -> bool:
        """Whether they aren't packed, as by older savers."""
        name = f"{self.stem}weight_zero_point"
        stored = self.source.tensor(name, rows=slice(0, 0)).dtype
        return self.source.shape(name)[0] == self.shape[0] and stored != torch.int32

    @cached_property
    def _groups(self) -> torch.Tensor:
        """Each column's group."""
        in_order = torch.arange(self.shape[1]) // self.group_size
        name = f"{self.stem}weight_g_idx"
        if name not in self.source.names:
            return in_order
        groups = self.source.tensor(name).long()
        if len(groups) and int(groups.min()) < 0:  # the order was not changed
            return in_order
        if len(groups) != self.shape[1] or int(groups.max()) > int(in_order[-1]):
            raise CheckpointError(f"The checkpoint's {name} doesn't fit groups of {self.group_size} columns.")
        return groups
