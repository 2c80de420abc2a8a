"""The scheduler's state of one sequence, and the rule that decides when it ends."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.core.batch import ScheduledSequence, SequenceInput
from engine.core.logits_processors import LogitsProcessors
from engine.core.state_slots import SlotPair
from engine.core.types import EngineRequest, FinishReason, PositionLogprobs, RequestTimings, TokenDelta
from engine.core.window_groups import WindowTable
from engine.errors import EngineError, GenerationFailed

log = logging.getLogger(__name__)

NO_BLOCKS = array("q")


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended, as its last delta reports it."""

    reason: FinishReason
    stop_reason: int | None = None
    error: EngineError | None = None
    by_stop_token: bool = False  # the last token is a stop or end-of-sequence token, not part of the text


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """Counts of the live sequences of one API request."""

    name: str
    num_running: int = 0
    num_waiting: int = 0
    num_prompt_tokens: int = 0


@dataclass(slots=True, eq=False)
class SequenceState:
    """What the scheduler knows about a sequence. Preemption takes its blocks and nothing else."""

    request: EngineRequest
    group: SequenceGroup
    priority_key: tuple[float, int]  # (due time, arrival number); lower runs first and is preempted last
    token_ids: list[int]  # the prompt, then the output
    logits_processors: LogitsProcessors | None = None
    num_computed: int = 0  # tokens whose keys and values are in the cache
    # Empty while waiting. Replaced, never changed: steps may still read it.
    block_ids: array[int] = field(default_factory=lambda: NO_BLOCKS)
    windows: Sequence[WindowTable] = ()  # its blocks in the groups of layers with a window, while it runs
    state_slots: SlotPair | None = None  # while it runs, in a model that carries a state
    block_hashes: list[bytes] = field(default_factory=list)  # of the full blocks, as far as needed so far
    num_cached_tokens: int | None = None  # prompt tokens found in the cache; None = never admitted
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list)  # of tokens 1 … as far as computed
    was_late: bool = False  # its constraint has not been ready in some step
    scheduled_time: float | None = None
    first_token_time: float | None = None

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def longest(self) -> int:
        """Its tokens in the end, as far as the request limits them."""
        return len(self.request.prompt_token_ids) + self.request.params.max_tokens

    @property
    def num_remaining(self) -> int:
        """Tokens still to run before the next one can be sampled; 1 = decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_at_once(self) -> int:
        """Of these, those that one step may run: a state that may have to wait needs all but the last first.

        Otherwise a late constraint would have the whole prompt, or its last chunk, run again in every step.
        """
        splits_off_last = self.was_late and self.state_slots is not None and self.num_remaining > 1
        return self.num_remaining - splits_off_last

    @property
    def is_prompt_only(self) -> bool:
        return self.request.params.max_tokens == 0

    @property
    def num_unscored(self) -> int:
        """Prompt tokens whose requested logprobs are not computed yet; the first token has none."""
        if self.request.params.prompt_logprobs is None:
            return 0
        return len(self.request.prompt_token_ids) - 1 - len(self.prompt_logprobs)

    def schedule(self, num_tokens: int) -> ScheduledSequence:
        """Its next `num_tokens`, for the runner."""
        start, stop = self.num_computed, self.num_computed + num_tokens
        request = self.request
        scored, scored_from = self._scored(start, stop) if self.num_unscored else ((), 0)
        return ScheduledSequence(
            SequenceInput(
                self.token_ids[start:stop],
                start,
                self.block_ids,
                samples=stop == len(self.token_ids) and not self.is_prompt_only,
                scored_from=scored_from,
                num_scored=len(scored),
                window_block_ids=tuple([table.block_ids for table in self.windows]) if self.windows else (),
                state_slots=self.state_slots,
            ),
            request.request_id,
            request.params,
            self.num_output_tokens,
            self.logits_processors,
            request.constraint,
            scored,
            request.adapter,
        )

    def count_run(self, num_tokens: int, *, is_late: bool) -> int:
        """How many of a step's tokens are computed. A late sequence was not sampled: its last runs again.

        A state can't go back by one token, so all of them do, the last one then in a step of its own
        (`num_at_once`).
        """
        self.was_late |= is_late
        if self.state_slots is None:
            return num_tokens - is_late
        if is_late:
            return 0
        self.state_slots = self.state_slots.swapped
        return num_tokens

    def _scored(self, start: int, stop: int) -> tuple[Sequence[int], int]:
        """The prompt tokens after positions `start` … `stop` - 1 without logprobs, and the first one's row.

        After a preemption some have logprobs already.
        """
        first = max(start + 1, len(self.prompt_logprobs) + 1)
        return self.request.prompt_token_ids[first : stop + 1], first - 1 - start

    def delta(self, tokens: Sequence[int], logprobs: Sequence[PositionLogprobs]) -> TokenDelta:
        """The newest tokens for the client, while the sequence continues."""
        is_first = self.num_output_tokens == len(tokens)
        return TokenDelta(
            request_id=self.request.request_id,
            token_ids=tuple(tokens),
            num_cached_tokens=self.num_cached_tokens or 0,
            logprobs=tuple(logprobs),
            prompt_logprobs=self._all_prompt_logprobs() if is_first else None,
            timings=self._timings() if is_first else None,
        )

    def last_delta(
        self, finish: Finish, tokens: Sequence[int], logprobs: Sequence[PositionLogprobs], now: float
    ) -> TokenDelta:
        """The end of the sequence, with its last tokens if there are any."""
        is_first = self.num_output_tokens == len(tokens)
        is_whole = finish.error is None and not self.num_unscored
        return TokenDelta(
            request_id=self.request.request_id,
            token_ids=tuple(tokens),
            finish_reason=finish.reason,
            stop_reason=finish.stop_reason,
            ends_with_stop_token=finish.by_stop_token,
            num_cached_tokens=self.num_cached_tokens or 0,
            logprobs=tuple(logprobs),
            prompt_logprobs=self._all_prompt_logprobs() if is_first and is_whole else None,
            error=finish.error,
            timings=self._timings(now),
        )

    def _all_prompt_logprobs(self) -> tuple[PositionLogprobs | None, ...] | None:
        """The whole prompt's, if requested; None for its first token, which nothing precedes."""
        if self.request.params.prompt_logprobs is None:
            return None
        return (None, *self.prompt_logprobs)

    def _timings(self, finished_time: float | None = None) -> RequestTimings:
        return RequestTimings(
            arrival_time=self.request.arrival_time,
            scheduled_time=self.scheduled_time,
            first_token_time=self.first_token_time,
            finished_time=finished_time,
        )


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a sequence ends by itself. The first of `eos_token_ids` is the tokenizer's own, the main one."""

    eos_token_ids: Sequence[int]
    max_model_len: int  # tokens of prompt and output together

    def extend(self, sequence: SequenceState, tokens: Sequence[int]) -> tuple[int, Finish | None]:
        """Add tokens to the output until one ends it. Returns how many were added, and the end."""
        for num_added, token in enumerate(tokens, 1):
            finish = self._append(sequence, token)
            if finish is not None:
                return num_added, finish
        return len(tokens), None

    def _append(self, sequence: SequenceState, token: int) -> Finish | None:
        """Add a token to the output and pass it to the logits processors and the constraint.

        None = the sequence continues.
        """
        sequence.token_ids.append(token)
        finish = self._finish_of(sequence)
        if finish is not None:
            return finish
        if sequence.logits_processors is not None:
            sequence.logits_processors.add(token)
        try:
            return self._constrain(sequence, token)
        except EngineError as error:
            return Finish(FinishReason.ERROR, error=error.with_traceback(None))
        except Exception as error:  # foreign code, for one client: the rest of the batch continues
            log.exception("A constraint failed to accept a token.")
            message = f"The output's constraint failed: {type(error).__name__}: {error}"
            return Finish(FinishReason.ERROR, error=GenerationFailed(message))

    def _constrain(self, sequence: SequenceState, token: int) -> Finish | None:
        """Advance the constraint. If it is finished and no end of sequence can follow, the sequence ends."""
        constraint = sequence.request.constraint
        if constraint is None:
            return None
        constraint.accept(token)
        if not self.is_complete(sequence):
            return None
        return Finish(FinishReason.STOP, by_stop_token=token in self.eos_token_ids)

    def is_complete(self, sequence: SequenceState) -> bool:
        """Whether its constraint is finished, and no end of sequence can follow."""
        constraint = sequence.request.constraint
        return constraint is not None and constraint.is_finished and not self._may_end_next(sequence)

    def _may_end_next(self, sequence: SequenceState) -> bool:
        """Whether an end-of-sequence token may come next and would end the sequence."""
        params = sequence.request.params
        is_late_enough = sequence.num_output_tokens >= params.min_tokens
        return bool(self.eos_token_ids) and not params.ignore_eos and is_late_enough

    def _finish_of(self, sequence: SequenceState) -> Finish | None:
        """The end that the newest token causes; None = the sequence continues."""
        params = sequence.request.params
        token = sequence.token_ids[-1]
        if sequence.num_output_tokens > params.min_tokens:
            if token in self.eos_token_ids and not params.ignore_eos:
                stop_reason = None if token == self.eos_token_ids[0] else token
                return Finish(FinishReason.STOP, stop_reason, by_stop_token=True)
            if token in params.stop_token_ids:
                return Finish(FinishReason.STOP, token, by_stop_token=True)
        if sequence.num_output_tokens >= params.max_tokens or len(sequence.token_ids) >= self.max_model_len:
            return Finish(FinishReason.LENGTH)
        return None
