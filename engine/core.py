"""One step: schedule, run, apply, and out come the tokens. Knows nothing of threads, HTTP or tensors."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.errors import DeviceLost
from engine.kv_cache import KVCache
from engine.scheduler import Scheduler
from engine.types import Batch, EngineRequest, EngineStats, Runner, TokenDelta

log = logging.getLogger(__name__)


class EngineCore:
    """A scheduler and a runner, called by one thread; `check`, `stats` and the limits may be read by any."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = runner

    @classmethod
    def from_config(
        cls, config: EngineConfig, runner: Runner, *, max_model_len: int, eos_token_ids: Sequence[int]
    ) -> EngineCore:
        """Put a core around a loaded model. `eos_token_ids`: the tokenizer's own first, then further ones.

        Raises ConfigError for limits that allow nothing to run.
        """
        cache = KVCache(
            runner.num_blocks, runner.block_size, enable_prefix_caching=config.enable_prefix_caching
        )
        scheduler = Scheduler(
            cache,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_token_ids=eos_token_ids,
        )
        return cls(scheduler, runner)

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
        """End a request between steps and free its blocks; its last delta, None if it has ended already."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[TokenDelta]:
        """Run one step. A runner that fails costs the requests of its batch; DeviceLost is passed on."""
        batch = self._scheduler.schedule()
        try:
            tokens = self._runner.execute(batch)
            _check(batch, tokens)
        except DeviceLost:
            raise
        except Exception as error:  # whatever it is, the clients of this batch must hear of it
            log.exception("A step of %d sequences failed.", len(batch.sequences))
            return self._scheduler.fail(f"This request failed in the engine: {type(error).__name__}: {error}")
        return self._scheduler.update(batch, tokens)

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def check_integrity(self) -> None:
        """Raise RuntimeError if the books of the KV cache are wrong."""
        self._scheduler.check_integrity()


def _check(batch: Batch, tokens: Sequence[int | None]) -> None:
    """Raise ValueError unless there is a token where one is due, and none elsewhere."""
    due = [sequence.samples for sequence in batch.sequences]
    if due != [token is not None for token in tokens]:
        raise ValueError(
            f"The runner returned {list(tokens)} for sequences of which {due} are to be sampled."
        )
