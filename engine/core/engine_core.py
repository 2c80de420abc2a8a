"""One step: schedule, run, apply the result, return new tokens. Knows nothing of threads, HTTP or tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.core.adapter import Adapter
from engine.core.batch import Batch, DeviceWatch, Runner, StepResult
from engine.core.block_manager import BlockManager
from engine.core.block_tables import BlockTables
from engine.core.cache_info import describe_cache
from engine.core.scheduler import Scheduler
from engine.core.sleep import MemoryUsage, Part
from engine.core.state_slots import StateSlots
from engine.core.types import EngineRequest, EngineStats, TokenDelta
from engine.core.window_groups import WindowGroup, WindowNeeds
from engine.errors import ConfigError, DeviceLost, EngineError, GenerationFailed

log = logging.getLogger(__name__)


class EngineCore:
    """A scheduler and a runner, called by one thread.

    Any thread may call `check` and `read_adapter`, and read `stats`, `memory` and the limits.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner[Any],
        *,
        cache_config: Mapping[str, str] | None = None,
        device_watch: DeviceWatch | None = None,
    ) -> None:
        """`device_watch`: for a device that can be lost between steps."""
        self._scheduler = scheduler
        self._device_watch = device_watch
        self._runner = runner
        self._cache_config = cache_config or {}

    @classmethod
    def from_config(
        cls,
        config: EngineConfig,
        runner: Runner[Any],
        *,
        max_model_len: int,
        eos_token_ids: Sequence[int],
        device_watch: DeviceWatch | None = None,
    ) -> EngineCore:
        """A core around a loaded model. `eos_token_ids`: the tokenizer's own first, then further ones.

        Raises ConfigError for limits that allow nothing to run.
        """
        slots = _state_slots(runner)
        shares = config.enable_prefix_caching and slots is None  # a state belongs to no block
        block_manager = BlockManager(runner.num_blocks, runner.block_size, enable_prefix_caching=shares)
        windows = [
            WindowGroup(
                BlockManager(num_blocks, runner.block_size, enable_prefix_caching=shares),
                window,
                WindowNeeds.of(
                    window,
                    runner.block_size,
                    max_num_batched_tokens=config.max_num_batched_tokens,
                    max_tokens_per_step=runner.max_tokens_per_step,
                ),
            )
            for window, num_blocks in runner.window_blocks.items()
        ]
        scheduler = Scheduler(
            BlockTables(
                block_manager, windows, max_tokens_per_step=runner.max_tokens_per_step, state_slots=slots
            ),
            max_num_seqs=config.max_num_seqs if slots is None else min(config.max_num_seqs, slots.num_pairs),
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            vocab_size=runner.vocab_size,
            max_prefill_beside_decodes=config.max_prefill_beside_decodes,
            max_tokens_per_step=runner.max_tokens_per_step,
            eos_token_ids=eos_token_ids,
        )
        described = describe_cache(config, block_manager, windows, max_model_len=scheduler.max_model_len)
        return cls(scheduler, runner, cache_config=described, device_watch=device_watch)

    def __repr__(self) -> str:
        return f"<EngineCore {self._scheduler!r}>"

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together: the model's limit, or the whole KV cache if that is less."""
        return self._scheduler.max_model_len

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def check(self, request: EngineRequest) -> None:
        """Raise InvalidRequest if the request could never run."""
        self._scheduler.check(request)

    def add(self, request: EngineRequest) -> None:
        """Queue a request; raises InvalidRequest."""
        self._scheduler.add(request)

    def abort(self, request_id: str) -> TokenDelta | None:
        """End a request between steps and free its blocks. Returns its last delta, None if it has ended."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[TokenDelta]:
        """Run one step. A request that fails ends alone; DeviceLost is re-raised."""
        batch = self._scheduler.schedule()
        return self._scheduler.update(batch, self._execute(batch))

    def _execute(self, batch: Batch) -> StepResult:
        """Run a batch; if that fails, run each of its sequences alone, to find the one that fails.

        Running a sequence again only writes the same keys and values to the same places.
        """
        try:
            result = self._runner.collect(self._runner.submit(batch))
            _check(batch, result)
        except DeviceLost:
            raise
        except Exception as error:  # any error must reach the clients
            log.exception("A step of %d sequences failed.", len(batch.sequences))
            failure = f"This request failed in the engine: {type(error).__name__}: {error}"
        else:
            return result
        # By now the error is gone, and with its traceback the failed step's tensors: their memory is free.
        if len(batch.sequences) == 1:
            return StepResult([()], failures={0: GenerationFailed(failure)})
        return _merge([self._execute(Batch((sequence,))) for sequence in batch.sequences])

    def watch_device(self, on_lost: Callable[[], None]) -> None:
        """Call `on_lost`, from any thread, when the device is lost: `check_device` then raises DeviceLost."""
        if self._device_watch is not None:
            self._device_watch.watch(on_lost)

    def check_device(self) -> None:
        if self._device_watch is not None:
            self._device_watch.check()

    def read_adapter(self, name: str, directory: Path) -> Adapter:
        """A LoRA adapter for requests; safe in any thread. Raises CheckpointError and ConfigError."""
        return self._runner.read_adapter(name, directory)

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of requests that have ended."""
        self._scheduler.reset_prefix_cache()

    def sleep(self, level: int) -> None:
        """Free the KV cache's memory, at level 2 the weights' too. Raises EngineError while there is work."""
        if self._scheduler.has_work:
            raise EngineError(f"The engine can't sleep while there is work: {self._scheduler!r}.")
        self._scheduler.reset_prefix_cache()
        self._runner.sleep(level)

    def wake_up(self, parts: Set[Part]) -> None:
        """Allocate that memory again; raises what loading the weights raises, and can then be retried."""
        self._runner.wake_up(parts)

    @property
    def memory(self) -> MemoryUsage:
        """Memory used by the model and its cache now."""
        return self._runner.memory

    def stats(self) -> EngineStats:
        return replace(self._scheduler.stats(), cache_config=self._cache_config)

    def check_integrity(self) -> None:
        """Raise RuntimeError if the KV cache's bookkeeping is inconsistent."""
        self._scheduler.check_integrity()


def _state_slots(runner: Runner[Any]) -> StateSlots | None:
    if not runner.num_state_slots:
        return None
    if runner.max_tokens_per_step > 1:
        raise ConfigError(
            "This model carries a state from token to token, which can't go back when guessed tokens are "
            "dropped: it runs without speculation."
        )
    return StateSlots(runner.num_state_slots)


def _check(batch: Batch, result: StepResult) -> None:
    """Raise ValueError unless all sequences that sample, and no others, have tokens, failed or are late."""
    without = result.failures.keys() | result.late
    due = [s.input.samples and index not in without for index, s in enumerate(batch.sequences)]
    if due != [len(tokens) > 0 for tokens in result.tokens]:
        raise ValueError(
            f"The runner returned {list(result.tokens)} for sequences whose tokens are due: {due}."
        )


def _merge(results: Sequence[StepResult]) -> StepResult:
    """The results of batches of one sequence each, as the result of one batch."""
    return StepResult(
        [result.tokens[0] for result in results],
        logprobs={i: result.logprobs[0] for i, result in enumerate(results) if result.logprobs},
        prompt_logprobs={
            i: result.prompt_logprobs[0] for i, result in enumerate(results) if result.prompt_logprobs
        },
        failures={i: result.failures[0] for i, result in enumerate(results) if result.failures},
        late={i for i, result in enumerate(results) if result.late},
    )
