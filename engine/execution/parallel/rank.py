"""A rank above 0: its share of the model and of the KV cache, and what it does with each message."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.core.adapter import Adapter
from engine.core.batch import Batch, ScheduledSequence
from engine.core.types import SamplingParams
from engine.execution.build import build_cache, load_model
from engine.execution.device import translated_out_of_memory
from engine.execution.memory import cuda_budget
from engine.execution.parallel.group import RankGroup
from engine.execution.parallel.messages import (
    Connect,
    MakeCache,
    MeasureBudget,
    Message,
    RankPlan,
    Run,
    Score,
    Sleep,
    WakeUp,
)
from engine.execution.runner import ModelRunner, SubmittedStep
from engine.models.decoder import CausalLM
from engine.models.lora.adapters import Adapters
from engine.models.transformers_backend.choice import architecture_for

_KEPT_STEPS = 4  # whose scored rows may still be asked for: more than are ever submitted at once
_UNUSED = SamplingParams(max_tokens=1)  # rank 0 samples


class Rank:
    def __init__(self, plan: RankPlan) -> None:
        """Loads the weights. Raises what that raises."""
        self._plan = plan
        self._group = RankGroup(plan.rank, plan.size)
        self._steps: dict[int, SubmittedStep] = {}  # those with scored rows
        self._runner: ModelRunner | None = None
        config = plan.config
        self._adapters = Adapters(max_rank=config.max_lora_rank) if config.enable_lora else None
        self._held: dict[bytes, Adapter] = {}  # by key
        if plan.device.type == "cuda":
            torch.cuda.set_device(plan.rank)
        else:
            torch.set_num_threads(plan.num_threads)
        self._load = partial(
            load_model,
            plan.config,
            architecture_for(plan.model_config),
            plan.model_config,
            dtype=plan.dtype,
            device=plan.device,
            group=self._group,
            adapters=self._adapters,
        )
        with translated_out_of_memory(), torch.inference_mode():
            self._model: CausalLM | None = self._load()

    @torch.inference_mode()
    def obey(self, message: Message) -> Any:
        """Returns the answer, for messages that have one."""
        match message:
            case Connect():
                plan = self._plan
                self._group.connect(plan.rendezvous, plan.device, timeout_s=plan.step_timeout_s)
                return None
            case MakeCache(num_blocks, window_blocks):
                self._make_cache(num_blocks, window_blocks)
            case MeasureBudget():
                return cuda_budget(self._plan.device, self._plan.config.gpu_memory_utilization)
            case Run():
                return self._run(message)
            case Score(number, start, stop):
                self._ready.scored_logits(self._steps[number], start, stop)
                return None
            case Sleep(level):
                self._steps.clear()
                self._ready.sleep(level)
            case WakeUp(parts):
                self._ready.wake_up(parts)
        return self._ready.memory

    def read_adapter(self, key: bytes, name: str, directory: Path) -> None:
        """Hold this rank's share of it. Safe in any thread. Raises CheckpointError and OutOfMemory."""
        if self._adapters is None:
            raise RuntimeError("Rank 0 has an adapter without --enable-lora.")
        with translated_out_of_memory():
            self._held[key] = self._adapters.read(name, directory)

    def drop_adapter(self, key: bytes) -> None:
        """One that it may not have. Safe in any thread."""
        self._held.pop(key, None)

    @property
    def _ready(self) -> ModelRunner:
        if self._runner is None:
            raise RuntimeError("Rank 0 asked for a step before it asked for a cache.")
        return self._runner

    def _make_cache(self, num_blocks: int, window_blocks: Mapping[int, int]) -> None:
        """The runner then has the only reference to the model, so that it can be dropped."""
        model = self._ready._residency.model if self._model is None else self._model
        self._model = self._runner = None
        cache = build_cache(self._plan.config, model, num_blocks, window_blocks)
        self._runner = ModelRunner(model, cache, eos_token_ids=(), load=self._load, adapters=self._adapters)

    def _run(self, message: Run) -> None:
        number, inputs, keys, dropped = message
        for key in dropped:
            self.drop_adapter(key)
        adapters = [None if key is None else self._held[key] for key in keys or [None] * len(inputs)]
        sequences = [
            ScheduledSequence(one, "", _UNUSED, adapter=adapter)
            for one, adapter in zip(inputs, adapters, strict=True)
        ]
        step = SubmittedStep(Batch(sequences))
        self._ready.run_model(step)
        step.logits = None
        self._steps.pop(number - _KEPT_STEPS, None)
        if any(one.num_scored for one in inputs):
            self._steps[number] = step
