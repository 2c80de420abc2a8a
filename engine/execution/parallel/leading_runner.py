"""The runner of rank 0, which samples: the others run the same model beside it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path

import torch

from engine.core.adapter import Adapter
from engine.core.sleep import ALL_PARTS, MemoryUsage, Part
from engine.errors import DeviceLost, EngineError
from engine.execution.parallel.messages import MakeCache, Run, Score, Sleep, WakeUp
from engine.execution.parallel.processes import Ranks
from engine.execution.runner import ModelRunner, SubmittedStep
from engine.models.attention.paged import PagedKVCache
from engine.models.decoder import CausalLM
from engine.models.lora.adapters import Adapters


class LeadingRunner(ModelRunner):
    """A step that fails in the model is a device lost: the ranks are then no longer in step."""

    def __init__(
        self,
        model: CausalLM,
        cache: PagedKVCache,
        ranks: Ranks,
        *,
        eos_token_ids: Sequence[int],
        load: Callable[[], CausalLM] | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """`ranks` are connected; each gets a KV cache like this one."""
        super().__init__(model, cache, eos_token_ids=eos_token_ids, load=load, adapters=adapters)
        self._ranks = ranks
        self._dropped: deque[bytes] = deque()  # keys of adapters; filled by any thread
        self._num_steps = 0
        self._others: list[MemoryUsage] = ranks.call(MakeCache(cache.num_blocks, cache.window_blocks))

    def run_model(self, step: SubmittedStep) -> None:
        step.number = self._num_steps
        self._num_steps += 1
        self._ranks.send(self._message(step))
        with self._ranks.translated_loss():
            super().run_model(step)

    def _message(self, step: SubmittedStep) -> Run:
        adapters = [sequence.adapter for sequence in step.batch.sequences]
        keys = [None if one is None else one.key for one in adapters] if any(adapters) else []
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        return Run(step.number, step.batch.inputs, keys, dropped)

    def read_adapter(self, name: str, directory: Path) -> Adapter:
        """On all ranks or none. They drop it with the first step after its last use."""
        adapter = super().read_adapter(name, directory)
        self._ranks.read_adapter(adapter.key, name, directory)
        weakref.finalize(adapter, self._dropped.append, adapter.key).atexit = False
        return adapter

    def scored_logits(self, step: SubmittedStep, start: int, stop: int) -> torch.Tensor:
        self._ranks.send(Score(step.number, start, stop))
        with self._ranks.translated_loss():
            return super().scored_logits(step, start, stop)

    def sleep(self, level: int) -> None:
        """All ranks or none."""
        self._ranks.send(Sleep(level))
        try:
            try:
                super().sleep(level)
            finally:
                self._others = self._ranks.collect()
        except DeviceLost:
            raise
        except EngineError:
            self.wake_up(ALL_PARTS)
            raise

    def wake_up(self, parts: Set[Part]) -> None:
        self._ranks.send(WakeUp(frozenset(parts)))
        try:
            super().wake_up(parts)
        finally:
            self._others = self._ranks.collect()

    @property
    def memory(self) -> MemoryUsage:
        """Of all ranks."""
        own = super().memory
        return replace(
            own,
            weights=own.weights + sum(other.weights for other in self._others),
            kv_cache=own.kv_cache + sum(other.kv_cache for other in self._others),
            host_weights=own.host_weights + sum(other.host_weights for other in self._others),
        )
