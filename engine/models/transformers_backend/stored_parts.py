"""Which part of each stored tensor a device reads, if it holds a share of the model.

Transformers renames stored tensors, and merges some, such as those of experts. Its own rules tell into which
parameter a tensor goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from engine.errors import UnsupportedModel
from engine.models.layers.division import Share
from engine.models.tensor_source import ALL, TensorSource

_STACK, _JOIN = "MergeModulelist", "Concatenate"


class Divided(Protocol):
    @property
    def axis(self) -> int: ...

    @property
    def num_packed(self) -> int: ...


PartOf = Callable[[str], "tuple[Divided, list[Share]] | None"]
"""A parameter's name → what a device holds of it: no shares if it holds zeros; None if it holds all of it."""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """Ranges of one axis; without any, zeros in the place of the tensor."""

    axis: int
    shares: Sequence[Share]

    def read(self, source: TensorSource, name: str) -> torch.Tensor:
        if not self.shares:
            return torch.zeros_like(source.tensor(name))
        shape = source.shape(name)
        ranges = [share.of(shape[self.axis]) for share in self.shares]
        parts = [self._range(source, name, one) for one in ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.axis)

    def _range(self, source: TensorSource, name: str, part: slice) -> torch.Tensor:
        if self.axis == 0:
            return source.tensor(name, rows=part)
        if self.axis == 1:
            return source.tensor(name, columns=part)
        return source.tensor(name)[(ALL,) * self.axis + (part,)].contiguous()


def stored_parts(
    model: PreTrainedModel, stored_names: Iterable[str], part_of: PartOf
) -> dict[str, StoredPart]:
    """By stored name. `model` has no weights. Raises UnsupportedModel for a merge that isn't known here."""
    mapping: list[Any] = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    parameters = model.state_dict()
    parts = {}
    for stored in stored_names:
        name, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, parameters)
        if name not in parameters and stored in parameters:  # as transformers does
            name, pattern = stored, None
        part = part_of(name)
        if part is None:
            continue
        converter = next((one for one in converters if pattern in one.source_patterns), None)
        parts[stored] = _part(name, *part, converter)
    return parts


def _part(name: str, divided: Divided, shares: list[Share], converter: Any) -> StoredPart:
    if converter is None or not shares:
        return StoredPart(divided.axis, shares)
    operations = {type(one).__name__: one for one in converter.operations}
    is_stacked, join = _STACK in operations, operations.get(_JOIN)
    num_joined = len(converter.source_patterns)
    is_known = operations.keys() <= {_STACK, _JOIN} and len(converter.target_patterns) == 1
    joins_packed = join is None or (join.dim == divided.axis and num_joined == divided.num_packed)
    if not is_known or not joins_packed:
        raise UnsupportedModel(
            f"This model can't be divided among devices: transformers makes {name} of several stored tensors "
            "in a way that the engine doesn't know. Use --tensor-parallel-size 1.",
            advice=None,
        )
    if join is not None:  # each stored tensor is one of the packed matrices
        packed = shares[0].size // num_joined
        shares = [Share(shares[0].start, shares[0].stop, packed)]
    return StoredPart(divided.axis - int(is_stacked), shares)
