"""GGUF files as a source of tensors, by the names that the model's modules give them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.checkpoint.gguf_architecture import Architecture, Stack
from engine.checkpoint.gguf_config import architecture_of
from engine.checkpoint.gguf_fields import Fields
from engine.checkpoint.gguf_file import GGUFFile, StoredTensor, read_gguf, split_files
from engine.errors import CheckpointError
from engine.models.quantised.ggml import DEQUANTISE, PLAIN
from engine.models.quantised.packing import bounds
from engine.models.tensor_source import ALL

_AT_ONCE = 1 << 20  # values: dequantising uses several times their memory


@dataclass(frozen=True, slots=True)
class _Tensor:
    stored: StoredTensor
    data: torch.Tensor  # uint8: its bytes, mapped
    num_heads: int = 0  # of rows that are permuted within each head; 0: they aren't
    offset: float = 0.0  # what was added to its values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        start, stop = bounds(rows, self.shape[0])
        if len(self.shape) > 1:
            values = _rows(self, start, stop, *bounds(columns, self.shape[1]))
        elif self.num_heads:
            values = _in_order(self, _read(self, 0, self.shape[0]).reshape(-1, 1)).flatten()[start:stop]
        else:
            values = _read(self, start, stop)[0]
        return values - self.offset if self.offset else values


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """One or several of the file's tensors, [experts, out, in] or [experts, out], as one of the model's."""

    stack: Stack
    parts: list[_Tensor]

    @property
    def stored(self) -> StoredTensor:
        return self.parts[0].stored

    @property
    def shape(self) -> tuple[int, ...]:
        num_experts, num_outputs, *inputs = self.stored.shape
        sizes = [num_outputs * len(self.parts), *inputs]
        return (num_experts, *(reversed(sizes) if self.stack.transposed else sizes))

    def check(self, name: str) -> None:
        shapes = {part.shape for part in self.parts}
        if len(shapes) > 1 or not 2 <= len(self.stored.shape) <= 3:
            found = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise CheckpointError(f"The GGUF file's tensors for {name} have shapes {found}.")

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        start, stop = bounds(rows, self.stored.shape[0])
        if start == stop:
            return torch.empty(0, *self.shape[1:])[:, columns]
        experts = torch.stack([self._expert(number) for number in range(start, stop)])
        return experts[:, columns].contiguous()

    def _expert(self, number: int) -> torch.Tensor:
        size = math.prod(self.stored.shape[2:])
        outputs = self.stored.shape[1]
        parts = []
        for part in self.parts:
            flat = replace(part.stored, shape=(math.prod(part.shape[:2]), size))
            if len(part.shape) == 2:  # a vector for each expert
                flat = replace(part.stored, shape=part.shape)
                parts.append(_read(_Tensor(flat, part.data), 0, outputs, number, number + 1)[0])
            else:
                first = number * outputs
                parts.append(_read(_Tensor(flat, part.data), 0, size, first, first + outputs))
        joined = torch.stack(parts, 1).flatten(0, 1) if self.stack.interleaved else torch.cat(parts)
        return joined.transpose(0, 1) if self.stack.transposed else joined


class GGUFSource:
    def __init__(self, paths: Sequence[Path]) -> None:
        """All files of a model, the one with its metadata first. Raises UnsupportedModel, CheckpointError."""
        files = [read_gguf(path) for path in paths]
        architecture, fields = architecture_of(files[0]), Fields(files[0])
        heads = fields.integer("attention.head_count")
        self._permuted = {"q_proj": heads, "k_proj": fields.integer("attention.head_count_kv", heads)}
        self._tensors: dict[str, _Tensor | ExpertStack] = {}
        found: dict[str, tuple[StoredTensor, torch.Tensor]] = {}
        for file in files:
            data = _mapped(file)
            if again := sorted(found.keys() & file.tensors.keys()):
                raise CheckpointError(f"{file.path} has tensor {again[0]}, as another file of the model.")
            for stored_name, stored in file.tensors.items():
                if stored.start + stored.num_bytes > len(data):
                    raise CheckpointError(f"{file.path} became shorter while it was read: start again.")
                found[stored_name] = stored, data[stored.start : stored.start + stored.num_bytes]
        for stored_name in sorted(found):  # so that experts' gates come before their ups
            name = architecture.tensor_name(stored_name)
            if name is not None:
                self._add(architecture, name, *found[stored_name])
        for name, tensor in self._tensors.items():
            if isinstance(tensor, ExpertStack):
                tensor.check(name)
        self.names = frozenset(self._tensors)

    @classmethod
    def open(cls, path: Path) -> GGUFSource:
        """`path`: the model's file, or any of several."""
        return cls(split_files(path))

    @property
    def num_quantised(self) -> int:
        return sum(tensor.stored.type_name not in PLAIN for tensor in self._tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        return self._tensors[name].read(rows, columns)

    def _add(self, architecture: Architecture, name: str, stored: StoredTensor, data: torch.Tensor) -> None:
        if "{}" in name:
            for expert, part in enumerate(_experts(name, stored)):
                own = data[expert * part.num_bytes : (expert + 1) * part.num_bytes]
                self._tensors[name.format(expert)] = _Tensor(part, own)
            return
        stack = next((one for end, one in architecture.stacks.items() if name.endswith(end)), None)
        if stack is None:
            self._tensors[name] = _tensor(architecture, name, stored, data, self._permuted)
        else:
            found = self._tensors.setdefault(name, ExpertStack(stack, []))
            assert isinstance(found, ExpertStack)  # noqa: S101
            found.parts.append(_Tensor(stored, data))


def _experts(name: str, stored: StoredTensor) -> list[StoredTensor]:
    """What each expert has of a tensor with all of them, one after the other."""
    if len(stored.shape) < 2:
        raise CheckpointError(f"The GGUF file's tensor for {name} has 1 dimension instead of one more.")
    num_experts = stored.shape[0]
    part = replace(stored, shape=stored.shape[1:], num_bytes=stored.num_bytes // num_experts)
    return [part] * num_experts


def _tensor(
    architecture: Architecture, name: str, stored: StoredTensor, data: torch.Tensor, heads: dict[str, int]
) -> _Tensor:
    layer, kind = name.split(".")[-2:] if name.count(".") else (name, "")
    if len(stored.shape) > 2:
        raise CheckpointError(
            f"The GGUF file's tensor for {name} has {len(stored.shape)} dimensions instead of 2."
        )
    num_heads = heads.get(layer, 0) if architecture.permuted else 0
    if num_heads and stored.shape[0] % (2 * num_heads):
        raise CheckpointError(
            f"The GGUF file's tensor for {name} has {stored.shape[0]} rows for {num_heads} heads."
        )
    plus_one = architecture.norms_plus_one and kind == "weight" and layer.endswith("norm")
    if layer.endswith("shared_expert_gate") and len(stored.shape) == 1:
        stored = replace(stored, shape=(1, *stored.shape))  # the file has its one row as a vector
    return _Tensor(stored, data, num_heads, 1.0 if plus_one else 0.0)


def _mapped(file: GGUFFile) -> torch.Tensor:
    try:
        with file.path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants a writable one
    except OSError as error:
        raise CheckpointError(f"{file.path} can't be read: {error}.") from error
    return torch.frombuffer(data, dtype=torch.uint8)


def _rows(tensor: _Tensor, start: int, stop: int, first: int, end: int) -> torch.Tensor:
    """Rows `start` to `stop` in the model's order, columns `first` to `end`."""
    if not tensor.num_heads:
        return _read(tensor, first, end, start, stop)
    head = tensor.stored.shape[0] // tensor.num_heads
    begin, finish = start // head * head, -(-stop // head) * head
    ordered = _in_order(tensor, _read(tensor, first, end, begin, finish))
    return ordered[start - begin : stop - begin].contiguous()


def _in_order(tensor: _Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Whole heads in the model's order.

    The model rotates the first half of a head's rows with the second; the file has these pairs side by side.
    """
    num_rows, num_columns = stored.shape
    half = tensor.stored.shape[0] // tensor.num_heads // 2
    pairs = stored.reshape(num_rows // (2 * half), half, 2, num_columns)
    return pairs.transpose(1, 2).reshape(num_rows, num_columns)


def _read(tensor: _Tensor, first: int, end: int, start: int = 0, stop: int = 1) -> torch.Tensor:
    """Columns `first` to `end` of rows `start` to `stop`, as stored: [rows, columns]."""
    stored = tensor.stored
    num_blocks = stored.shape[-1] // stored.block_size
    block, end_block = first // stored.block_size, -(-end // stored.block_size)
    blocks = tensor.data.reshape(-1, num_blocks, stored.block_bytes)[start:stop, block:end_block]
    wanted = slice(first - block * stored.block_size, end - block * stored.block_size)
    if stored.type_name in PLAIN:
        plain = blocks.contiguous().view(PLAIN[stored.type_name])
        return plain.reshape(stop - start, end_block - block)[:, wanted]
    values = torch.empty(stop - start, (end_block - block) * stored.block_size)
    step = max(1, _AT_ONCE // max(1, values.shape[1]))
    if not values.numel():
        return values[:, wanted]
    for at in range(0, stop - start, step):
        flat = blocks[at : at + step].reshape(-1, stored.block_bytes)
        values[at : at + step] = DEQUANTISE[stored.type_name](flat).reshape(-1, values.shape[1])
    return values[:, wanted].contiguous()
