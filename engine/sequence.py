"""One request on its way through the scheduler, and the rule that says when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.types import EngineRequest, FinishReason, RequestTimings


@dataclass(slots=True, eq=False)
class SequenceState:
    """What the scheduler knows of a request. Preemption takes its blocks and nothing else."""

    request: EngineRequest
    rank: tuple[int, int]  # (priority, number of arrival); lower runs first and is preempted last
    token_ids: list[int]  # the prompt, then the output
    num_computed: int = 0  # tokens whose keys and values are in the cache
    block_ids: list[int] = field(default_factory=list)  # empty while waiting
    keys: list[bytes] = field(default_factory=list)  # of the full blocks, as far as they were needed yet
    num_cached_tokens: int | None = None  # prompt tokens found in the cache; None = never admitted
    scheduled_time: float | None = None
    first_token_time: float | None = None

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_remaining(self) -> int:
        """Tokens still to run before the next one can be sampled; 1 = decoding."""
        return len(self.token_ids) - self.num_computed

    def timings(self, finished_time: float | None = None) -> RequestTimings:
        return RequestTimings(
            arrival_time=self.request.arrival_time,
            scheduled_time=self.scheduled_time,
            first_token_time=self.first_token_time,
            finished_time=finished_time,
        )


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a sequence ends of itself. The first of `eos_token_ids` is the tokenizer's own, the main one."""

    eos_token_ids: Sequence[int]
    max_model_len: int  # tokens of prompt and output together

    def finish_of(self, sequence: SequenceState) -> tuple[FinishReason, int | None] | None:
        """The finish and stop reasons that the newest token brings; None = it goes on."""
        params = sequence.request.params
        token = sequence.token_ids[-1]
        if sequence.num_output_tokens > params.min_tokens:
            if token in self.eos_token_ids and not params.ignore_eos:
                return FinishReason.STOP, None if token == self.eos_token_ids[0] else token
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
        if sequence.num_output_tokens >= params.max_tokens or len(sequence.token_ids) >= self.max_model_len:
            return FinishReason.LENGTH, None
        return None
