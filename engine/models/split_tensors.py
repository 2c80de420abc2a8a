"""A checkpoint that stores several of the model's tensors as one, row under row."""

from __future__ import annotations

import torch

from engine.models.tensor_source import ALL, TensorSource

_JOIN = "+"


class SplitTensors:
    """A TensorSource that divides evenly what a checkpoint's renaming names with plus signs.

    `layer.query+key+value.weight` becomes `layer.query.weight`, `layer.key.weight` and `layer.value.weight`.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._parts: dict[str, tuple[str, int, int]] = {}  # name → the whole's name, which part, of how many
        for name in source.names:
            path = name.split(".")
            joined = next((index for index, part in enumerate(path) if _JOIN in part), None)
            if joined is not None:
                parts = path[joined].split(_JOIN)
                for index, part in enumerate(parts):
                    own = ".".join((*path[:joined], part, *path[joined + 1 :]))
                    self._parts[own] = name, index, len(parts)
        whole = {name for name, _, _ in self._parts.values()}
        self.names = frozenset(self._parts) | (source.names - whole)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._parts:
            return self._source.shape(name)
        whole, _, count = self._parts[name]
        rows, *columns = self._source.shape(whole)
        return (rows // count, *columns)

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        if name not in self._parts:
            return self._source.tensor(name, rows=rows, columns=columns)
        whole, index, _ = self._parts[name]
        size, *_ = self.shape(name)
        start, stop, _ = rows.indices(size)
        first = index * size
        return self._source.tensor(whole, rows=slice(first + start, first + stop), columns=columns)
