"""Moves a model's weights from a GPU to main memory and back, in place: its modules stay the same objects."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

log = logging.getLogger(__name__)

_ALIGNMENT = 256  # bytes, of each tensor in the copy


def tensors_of(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Every tensor with its module and name: attributes, as our layers have them, parameters and buffers."""
    for module in modules:
        for name, value in [*vars(module).items(), *module._parameters.items(), *module._buffers.items()]:
            if isinstance(value, torch.Tensor):
                yield module, name, value


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Their total size; tensors that share memory count once."""
    sizes = {_memory_of(tensor): tensor.nbytes for tensor in tensors}
    return sum(sizes.values())


def _memory_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Equal for two tensors that share memory. Packed weights have no data pointer."""
    return (0, id(tensor)) if tensor.is_mkldnn else (tensor.data_ptr(), tensor.nbytes)


@dataclass(frozen=True, slots=True)
class _Held:
    """One tensor, or view of another's memory, and the modules that hold it: tied weights have several."""

    holders: list[tuple[nn.Module, str]]
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int  # elements from the start of its memory
    dtype: torch.dtype
    is_parameter: bool
    requires_grad: bool

    def give(self, memory: torch.UntypedStorage | None) -> None:
        """Give the modules this tensor in `memory`; None: an empty one."""
        device = "cpu" if memory is None else memory.device
        tensor = torch.empty(0, dtype=self.dtype, device=device)
        if memory is not None:
            tensor.set_(memory, self.offset, self.shape, self.stride)
        if self.is_parameter:
            tensor = nn.Parameter(tensor, requires_grad=self.requires_grad)
        for module, name in self.holders:
            setattr(module, name, tensor)


@dataclass(frozen=True, slots=True)
class _Place:
    """A piece of the device's memory, its place in the copy, and the tensors in it, by identity."""

    start: int  # bytes
    stop: int
    tensors: dict[int, _Held]


class HostCopy:
    """Weights in one block of main memory, page-locked if possible: then a copy takes half as long.

    The tensors of the modules are empty until `restore`.
    """

    @torch.inference_mode()
    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Raises MemoryError or torch's RuntimeError if memory is short; the modules are then unchanged."""
        self._device = device
        found: dict[tuple[int, int], tuple[torch.UntypedStorage, _Place]] = {}
        end = 0
        for module, name, tensor in tensors_of(modules):
            if tensor.device.type != device.type:
                continue
            memory = tensor.untyped_storage()
            if (key := (memory.data_ptr(), memory.nbytes())) not in found:
                start = -(-end // _ALIGNMENT) * _ALIGNMENT
                end = start + memory.nbytes()
                found[key] = (memory, _Place(start, end, {}))
            held = found[key][1].tensors.setdefault(id(tensor), _held(tensor))
            held.holders.append((module, name))
        self._bytes = torch.empty(end, dtype=torch.uint8)
        self._is_locked = device.type == "cuda" and _lock_pages(self._bytes)
        try:
            for memory, place in found.values():
                self._view(place).copy_(_bytes_of(memory), non_blocking=True)
            self._synchronize()
        except BaseException:
            self.close()  # pages must not stay locked when their memory is freed
            raise
        self._places = [place for _, place in found.values()]
        for place in self._places:
            for held in place.tensors.values():
                held.give(None)

    @property
    def num_bytes(self) -> int:
        return self._bytes.nbytes

    @torch.inference_mode()
    def restore(self) -> None:
        """Give the modules their weights again. Raises torch.OutOfMemoryError; can then be retried."""
        blocks = [
            torch.empty(place.stop - place.start, dtype=torch.uint8, device=self._device)
            for place in self._places
        ]
        for block, place in zip(blocks, self._places, strict=True):
            block.copy_(self._view(place), non_blocking=True)
        self._synchronize()
        for block, place in zip(blocks, self._places, strict=True):
            for held in place.tensors.values():
                held.give(block.untyped_storage())

    def close(self) -> None:
        """Free the main memory."""
        if self._is_locked:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())  # type: ignore[no-untyped-call]
            self._is_locked = False
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def _view(self, place: _Place) -> torch.Tensor:
        return self._bytes[place.start : place.stop]

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _held(tensor: torch.Tensor) -> _Held:
    return _Held(
        [],
        tensor.shape,
        tensor.stride(),
        int(tensor.storage_offset()),
        tensor.dtype,
        is_parameter=isinstance(tensor, nn.Parameter),
        requires_grad=tensor.requires_grad,
    )


def _bytes_of(memory: torch.UntypedStorage) -> torch.Tensor:
    """uint8 [memory.nbytes()], a view."""
    return torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory)


def _lock_pages(block: torch.Tensor) -> bool:
    """Registers memory rather than allocating it locked: PyTorch rounds those up to a power of two."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    result = cudart.cudaHostRegister(block.data_ptr(), block.nbytes, 0)
    if int(result) != 0:
        log.warning(
            "Main memory for sleeping weights can't be page-locked (%s): waking up takes longer.", result
        )
    return int(result) == 0
