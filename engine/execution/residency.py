"""A model and its KV cache, in the device's memory or asleep. Called from the engine's thread."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from engine.core.sleep import WEIGHTS_DROPPED, MemoryUsage, Part
from engine.errors import EngineAsleep
from engine.execution.allocator import return_freed_memory
from engine.execution.device import translated_out_of_memory
from engine.execution.offload import HostCopy, bytes_of, tensors_of


class HasModules(Protocol):
    def modules(self) -> Iterator[nn.Module]: ...


class HasTensors(Protocol):
    def tensors(self) -> Iterable[torch.Tensor]: ...


ModelT = TypeVar("ModelT", bound=HasModules)
CacheT = TypeVar("CacheT", bound=HasTensors | None)


class ModelResidency(Generic[ModelT, CacheT]):
    """Must have the only references to the model and the cache, or their memory can't be freed."""

    def __init__(
        self,
        model: ModelT,
        cache: CacheT,
        *,
        device: torch.device,
        load: Callable[[], ModelT] | None,
        make_cache: Callable[[], CacheT],
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_move` is called before weights or cache leave their addresses, and when they have new ones.

        `load` and `make_cache` recreate what was dropped; without `load` the model can't be dropped.

        A cache of None means that the model needs none.
        """
        self._model: ModelT | None = model
        self._cache: tuple[CacheT] | None = (cache,)
        self._host_copy: HostCopy | None = None
        self._device = device
        self._load = load
        self._make_cache = make_cache
        self._on_move = on_move
        self._memory = self._measure()

    @property
    def memory(self) -> MemoryUsage:
        """May be read from any thread."""
        return self._memory

    @property
    def model(self) -> ModelT:
        """Raises EngineAsleep."""
        if self._model is None or self._host_copy is not None:
            raise EngineAsleep("The engine is asleep: its weights aren't loaded.")
        return self._model

    @property
    def cache(self) -> CacheT:
        """Raises EngineAsleep."""
        if self._cache is None:
            raise EngineAsleep("The engine is asleep: it has no KV cache.")
        return self._cache[0]

    def sleep(self, level: int) -> None:
        """Free the cache; at level 1 move a GPU's weights to main memory, at level 2 drop them.

        Raises OutOfMemory if main memory can't hold them; nothing has changed then.
        """
        if level >= WEIGHTS_DROPPED and self._load is None:
            raise EngineAsleep("The weights can't be dropped: there is no way to load them again.")
        self._on_move()
        if level >= WEIGHTS_DROPPED:
            self._close_host_copy()
            self._model = None
            _collect()  # modules refer to each other in cycles
        elif self._device.type != "cpu" and self._model is not None and self._host_copy is None:
            with translated_out_of_memory():
                self._host_copy = HostCopy(self._model.modules(), self._device)
        self._cache = None
        self._return_memory()

    @torch.inference_mode()
    def wake_up(self, parts: Set[Part]) -> None:
        """Restore these parts. Raises OutOfMemory, and what loading raises; can then be retried."""
        try:
            with translated_out_of_memory():
                if Part.WEIGHTS in parts:
                    self._wake_weights()
                if Part.KV_CACHE in parts and self._cache is None:
                    self._cache = (self._make_cache(),)
        except Exception as error:
            # Other processes may need the memory allocated before the failure; the traceback would keep it.
            traceback.clear_frames(error.__traceback__)
            self._return_memory()
            raise
        finally:
            self._on_move()  # after an error, too: the weights may be there already
        self._memory = self._measure()

    def _wake_weights(self) -> None:
        if self._host_copy is not None:
            self._host_copy.restore()
            self._close_host_copy()
            return_freed_memory()
        elif self._model is None and self._load is not None:
            self._model = self._load()

    def _close_host_copy(self) -> None:
        if self._host_copy is not None:
            self._host_copy.close()
            self._host_copy = None

    def _return_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return_freed_memory()
        self._memory = self._measure()

    def _measure(self) -> MemoryUsage:
        weights = [] if self._model is None else [t for _, _, t in tensors_of(self._model.modules())]
        cache = None if self._cache is None else self._cache[0]
        return MemoryUsage(
            device=_name_of(self._device),
            weights=bytes_of(weights),
            kv_cache=0 if cache is None else bytes_of(cache.tensors()),
            host_weights=0 if self._host_copy is None else self._host_copy.num_bytes,
        )


def _name_of(device: torch.device) -> str:
    """The device's name with its index, which the flags' device lacks."""
    return str(torch.empty(0, device=device).device)


def _collect() -> None:
    """Collect all garbage, including frozen objects (engine/launch/launcher.py)."""
    was_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if was_frozen:
        gc.freeze()
