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
    """Every tensor attribute with its module and name; our modules have no parameters or buffers."""
    for module in modules:
        for name, value in vars(module).items():
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
class _Place:
    """A tensor's place in the copy, and its owners: tied weights have several."""

    owners: list[tuple[nn.Module, str]]
    shape: torch.Size
    dtype: torch.dtype
    start: int  # bytes
    stop: int


class HostCopy:
    """Weights in one block of main memory, page-locked if possible: then a copy takes half as long.

    The tensors of the modules are empty until `restore`.
    """

    @torch.inference_mode()
    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Raises MemoryError or torch's RuntimeError if memory is short; the modules are then unchanged."""
        self._device = device
        found: dict[tuple[int, int], tuple[torch.Tensor, _Place]] = {}
        end = 0
        for module, name, tensor in tensors_of(modules):
            if tensor.device.type != device.type:
                continue
            if (key := _memory_of(tensor)) not in found:
                start = -(-end // _ALIGNMENT) * _ALIGNMENT
                end = start + tensor.nbytes
                found[key] = (tensor, _Place([], tensor.shape, tensor.dtype, start, end))
            found[key][1].owners.append((module, name))
        self._bytes = torch.empty(end, dtype=torch.uint8)
        self._is_locked = device.type == "cuda" and _lock_pages(self._bytes)
        try:
            for tensor, place in found.values():
                self._view(place).copy_(tensor, non_blocking=True)
            self._synchronize()
        except BaseException:
            self.close()  # pages must not stay locked when their memory is freed
            raise
        self._places = [place for _, place in found.values()]
        for place in self._places:
            for module, name in place.owners:
                setattr(module, name, torch.empty(0, dtype=place.dtype))

    @property
    def num_bytes(self) -> int:
        return self._bytes.nbytes

    @torch.inference_mode()
    def restore(self) -> None:
        """Give the modules their weights again. Raises torch.OutOfMemoryError; can then be retried."""
        tensors = [torch.empty(place.shape, dtype=place.dtype, device=self._device) for place in self._places]
        for tensor, place in zip(tensors, self._places, strict=True):
            tensor.copy_(self._view(place), non_blocking=True)
        self._synchronize()
        for tensor, place in zip(tensors, self._places, strict=True):
            for module, name in place.owners:
                setattr(module, name, tensor)

    def close(self) -> None:
        """Free the main memory."""
        if self._is_locked:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())  # type: ignore[no-untyped-call]
            self._is_locked = False
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def _view(self, place: _Place) -> torch.Tensor:
        return self._bytes[place.start : place.stop].view(place.dtype).view(place.shape)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _lock_pages(block: torch.Tensor) -> bool:
    """Registers memory rather than allocating it locked: PyTorch rounds those up to a power of two."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    result = cudart.cudaHostRegister(block.data_ptr(), block.nbytes, 0)
    if int(result) != 0:
        log.warning(
            "Main memory for sleeping weights can't be page-locked (%s): waking up takes longer.", result
        )
    return int(result) == 0
