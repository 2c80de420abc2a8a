"""Continuous batching: which tokens of which sequences run in the next step.

A pure state machine: no clock of its own, no thread, no tensors. In each step, decodes come first, one token
each; the rest of the token budget goes to prompts, in chunks. Beside decodes the prompts' budget may be
smaller, so that no step takes long while clients stream. When blocks run out, the running sequence with the
highest priority key loses its blocks and is recomputed later, outputs included.

The priority key is when a sequence is due: its arrival, delayed by a fixed time for each level of priority.
So the more urgent of two waiting sequences goes first, unless the other has waited that much longer; running
sequences are not interrupted for it unless blocks run out. While there are several API requests, none has
more than its share of the slots and of the prompts' tokens (fair_share.py, prompt_budget.py): a request that
would take more is skipped, or gives slots back.

Why no sequence waits forever: only finitely many can be due before it. Of the running sequences, the one due
first gets a token in every step and is never preempted: not for blocks, because alone it always fits, its
length being limited by the whole cache; not for a slot, because a request keeps its first. So it ends, and
then, one after the other, do all running sequences. Of the waiting sequences, the one due first is considered
first, and no other passes it while it lacks blocks. It is skipped only while its request has its share of
slots, or while running prompts use its share of tokens or the step's logprobs, or compute its prefix: in each
case until running sequences have ended.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from itertools import islice
from operator import attrgetter

from engine.core.batch import Batch, StepResult
from engine.core.block_tables import BlockTables
from engine.core.fair_share import FairShare, eligible
from engine.core.logits_processors import LogitsProcessorFactory
from engine.core.prefix_cache import PrefixCache
from engine.core.prompt_budget import PromptBudget
from engine.core.request_check import RequestCheck
from engine.core.sequence import Finish, SequenceState, StopRule
from engine.core.types import EngineRequest, EngineStats, FinishReason, PositionLogprobs, TokenDelta
from engine.errors import ConfigError, InvalidRequest

_by_priority = attrgetter("priority_key")


class Scheduler:
    """Owns every live sequence. `schedule` and `update` alternate; `add` and `abort` run between steps."""

    def __init__(
        self,
        tables: BlockTables,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        vocab_size: int,
        max_prefill_beside_decodes: int | None = None,
        max_tokens_per_step: int = 1,
        eos_token_ids: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_prefill_beside_decodes`: prompt tokens in a step that has decodes; None = what is left over.
        `max_tokens_per_step`: see Runner in engine/core/batch.py.

        Raises ConfigError for limits that allow nothing to run.
        """
        if min(max_num_seqs, max_num_batched_tokens) < 1 or max_model_len < 2:
            raise ConfigError(
                f"max_num_seqs {max_num_seqs} and max_num_batched_tokens {max_num_batched_tokens} must be at "
                f"least 1, max_model_len {max_model_len} at least 2."
            )
        self._tables = tables
        self._block_manager = tables.block_manager
        self._clock = clock
        self.max_num_batched_tokens = max_num_batched_tokens
        self._max_prefill_beside_decodes = max(1, max_prefill_beside_decodes or max_num_batched_tokens)
        self._max_tokens_per_step = max_tokens_per_step
        # Every running sequence can decode in every step.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        # A sequence alone always fits into the cache.
        self.max_model_len = min(
            max_model_len, tables.block_manager.num_blocks * tables.block_manager.block_size
        )
        self._fair_blocks = tables.block_manager.num_blocks // self.max_num_seqs
        self._vocab_size = vocab_size
        self._request_check = RequestCheck(self.max_model_len, vocab_size)
        self._stop_rule = StopRule(tuple(eos_token_ids), self.max_model_len)
        self._sequences: dict[str, SequenceState] = {}
        self._waiting: list[SequenceState] = []  # both sorted by priority key
        self._running: list[SequenceState] = []
        self._in_step: list[SequenceState] = []  # parallel to the sequences of the batch that runs now
        self._fair_share = FairShare(self.max_num_seqs)
        self._logits_processor_factory = LogitsProcessorFactory()
        self._prefix_cache = PrefixCache(tables)
        self._num_added = 0
        self._num_preemptions = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0

    def __repr__(self) -> str:
        num_running, num_waiting = len(self._running), len(self._waiting)
        return f"<Scheduler {num_running} running, {num_waiting} waiting, {self._block_manager!r}>"

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    # Requests

    def check(self, request: EngineRequest) -> None:
        """Raise InvalidRequest if the request could never run. Reads constants only: safe in any thread."""
        self._request_check.check(request)

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises InvalidRequest like `check`, and for an id that is in use."""
        self.check(request)
        if request.request_id in self._sequences:
            raise InvalidRequest(f"A request {request.request_id!r} is running already.", param="request_id")
        processors = self._logits_processor_factory.make(request.params, request.prompt_token_ids)
        group, due = self._fair_share.add(request)
        self._num_added += 1
        sequence = SequenceState(
            request,
            group,
            priority_key=(due, self._num_added),
            token_ids=list(request.prompt_token_ids),
            logits_processors=processors,
        )
        self._sequences[request.request_id] = sequence
        insort(self._waiting, sequence, key=_by_priority)

    def abort(self, request_id: str) -> TokenDelta | None:
        """End a request and free its blocks at once. Returns its last delta, None for an unknown id.

        A step that is running now may still write to the blocks: they are not reallocated before `schedule`.
        """
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._end(sequence, Finish(FinishReason.ABORT))

    # Steps

    def schedule(self) -> Batch:
        """The next step's work; never empty while there are sequences."""
        # Blocks for the next tokens of each running sequence, by preempting others if need be
        for sequence in tuple(self._running):
            self._ensure_blocks(sequence)
        chunks = sorted(self._plan_chunks(), key=lambda chunk: chunk[1] > 1)  # decodes, then prefills
        self._in_step = [sequence for sequence, _ in chunks]
        self._tables.prepare(chunks)
        return Batch(tuple(sequence.schedule(num_tokens) for sequence, num_tokens in chunks))

    def update(self, batch: Batch, result: StepResult) -> list[TokenDelta]:
        """Apply what the runner returned for `batch`, the last one scheduled."""
        now = self._clock()
        deltas = []
        for index, (sequence, scheduled) in enumerate(zip(self._in_step, batch.sequences, strict=True)):
            if self._sequences.get(scheduled.request_id) is not sequence:
                continue  # aborted while the step ran
            if index in result.failures:
                deltas.append(self._end(sequence, Finish(FinishReason.ERROR, error=result.failures[index])))
                continue
            if index in result.late and self._stop_rule.is_complete(sequence):  # known only now
                deltas.append(self._end(sequence, Finish(FinishReason.STOP)))
                continue
            num_run = sequence.count_run(len(scheduled.input.token_ids), is_late=index in result.late)
            self._prefix_cache.advance(sequence, num_run)
            sequence.prompt_logprobs += result.prompt_logprobs.get(index, ())
            if tokens := result.tokens[index]:
                deltas.append(self._append(sequence, tokens, result.logprobs.get(index, ()), now))
            elif sequence.is_prompt_only and not sequence.num_remaining:
                self._prompt_tokens += len(sequence.request.prompt_token_ids)
                deltas.append(self._end(sequence, Finish(FinishReason.LENGTH)))
        self._in_step = []
        return deltas

    def reset_prefix_cache(self) -> None:
        """Forget cached blocks; running sequences keep theirs."""
        self._tables.reset()

    def stats(self) -> EngineStats:
        """Reads counters only: safe in any thread."""
        return EngineStats(
            num_requests_running=len(self._running),
            num_requests_waiting=len(self._waiting),
            kv_cache_usage=self._tables.usage,
            prefix_cache_queries=self._prefix_cache.num_queries,
            prefix_cache_hits=self._prefix_cache.num_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            num_preemptions=self._num_preemptions,
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError if a block has leaked or belongs to a sequence that isn't running."""
        self._tables.check_integrity(self._sequences.values())
        if sum(map(len, (self._running, self._waiting))) != len(self._sequences):
            raise RuntimeError(f"{self!r} has {len(self._sequences)} sequences.")
        self._fair_share.check_integrity(self._running, self._waiting)

    # Deciding

    def _ensure_blocks(self, sequence: SequenceState) -> None:
        """Give a decoding sequence blocks for its next tokens, by preempting the one due last if needed."""
        if sequence.num_remaining > 1:
            return  # prefills got all their blocks when they were admitted, and preempted sequences have none
        stop = min(sequence.num_computed + self._max_tokens_per_step, self.max_model_len)
        while sequence.block_ids and not self._tables.grow(sequence, stop):
            self._preempt(self._running[-1])

    def _plan_chunks(self) -> list[tuple[SequenceState, int]]:
        """Which sequences run, and how many tokens: decodes, then unfinished prompts, then new ones.

        Of a request's prompts in a step, only the last stays unfinished, and those with logprobs, which
        are computed in parts. As decodes are fewer than the budget while prompts run, the first prompt gets
        at least one token.
        """
        chunks = [(sequence, 1) for sequence in self._running if sequence.num_remaining == 1]
        num_tokens = self.max_num_batched_tokens - len(chunks)
        if chunks:
            num_tokens = min(num_tokens, self._max_prefill_beside_decodes)
        prefills = [sequence for sequence in self._running if sequence.num_remaining > 1]
        if not (prefills or (self._waiting and self._has_slot())):
            return chunks
        budget = PromptBudget(num_tokens, self._vocab_size, is_contended=self._fair_share.is_contended)
        for _ in budget.rounds():
            for sequence in prefills:
                if sequence.block_ids:
                    budget.give(sequence)
            prefills += self._admit(budget)
        chunks += budget.given()
        return [chunk for chunk in chunks if chunk[0].block_ids]  # a preempted sequence has none

    def _admit(self, budget: PromptBudget) -> list[SequenceState]:
        """Move waiting sequences to running while there is budget; each takes all the blocks it needs now.

        One free block is left per running sequence, so that an admission does not cause a preemption at once.
        A sequence preempted for blocks, all but one of which are free again, thus does not return in the same
        step; nor does one that gave its slot back, because its request still has its share.
        """
        admitted: list[SequenceState] = []
        candidates = eligible(self._waiting, lambda sequence: self._may_start(sequence, budget))
        for sequence in islice(candidates, self.max_num_seqs if budget.num_left else 0):
            if not (budget.num_left and self._has_slot()):
                break
            match = self._prefix_cache.find(sequence, self._running)
            if match is None:
                continue
            if len(self._running) >= self.max_num_seqs:
                surplus = self._fair_share.surplus_sequence(self._running)
                budget.take_back(surplus)  # before a preemption, which forgets what it has computed
                self._preempt(surplus)
            if not self._tables.can_start(sequence, match, len(self._running)):
                break
            longest, fair = min(sequence.longest, self.max_model_len), self._fair_blocks
            self._tables.start(sequence, match, longest=longest, most_reserved=fair)
            self._start(sequence, len(match.blocks) * self._block_manager.block_size)
            admitted.append(sequence)
            budget.give(sequence)
        return admitted

    def _may_start(self, sequence: SequenceState, budget: PromptBudget) -> bool:
        """Whether its request may have a slot, and tokens if any are left."""
        may_take_slot = self._fair_share.may_take_slot(sequence.group)
        return may_take_slot and (not budget.num_left or budget.offer(sequence) > 0)

    def _has_slot(self) -> bool:
        """Whether a slot is free, or will be given back."""
        return len(self._running) < self.max_num_seqs or self._fair_share.has_surplus_slot

    # Acting

    def _start(self, sequence: SequenceState, num_cached_tokens: int) -> None:
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_by_priority)
        self._fair_share.mark_running(sequence.group)
        sequence.num_computed = num_cached_tokens
        if sequence.num_cached_tokens is None:  # not after a preemption: it would find its own blocks
            sequence.num_cached_tokens = num_cached_tokens
            sequence.scheduled_time = self._clock()
            self._prefix_cache.count_lookup(len(sequence.token_ids), num_cached_tokens)

    def _preempt(self, sequence: SequenceState) -> None:
        self._running.remove(sequence)
        insort(self._waiting, sequence, key=_by_priority)
        self._fair_share.mark_waiting(sequence.group)
        self._tables.release(sequence)
        sequence.num_computed = 0
        self._num_preemptions += 1

    def _append(
        self,
        sequence: SequenceState,
        tokens: Sequence[int],
        logprobs: Sequence[PositionLogprobs],
        now: float,
    ) -> TokenDelta:
        """Add a step's tokens to the output; those after one that ends it are dropped."""
        if sequence.first_token_time is None:
            sequence.first_token_time = now
            self._prompt_tokens += len(sequence.request.prompt_token_ids)
        num_added, finish = self._stop_rule.extend(sequence, tokens)
        self._generation_tokens += num_added
        if num_added > 1:  # the runner has computed all but the last
            self._prefix_cache.advance(sequence, num_added - 1)
        added = tokens[:num_added], logprobs[:num_added]
        return sequence.delta(*added) if finish is None else self._end(sequence, finish, *added)

    def _end(
        self,
        sequence: SequenceState,
        finish: Finish,
        tokens: Sequence[int] = (),
        logprobs: Sequence[PositionLogprobs] = (),
    ) -> TokenDelta:
        """The only way out, whatever the reason: forget the sequence and free its blocks."""
        del self._sequences[sequence.request.request_id]
        (self._running if sequence.block_ids else self._waiting).remove(sequence)
        self._fair_share.remove(sequence, is_running=bool(sequence.block_ids))
        self._tables.release(sequence)
        return sequence.last_delta(finish, tokens, logprobs, self._clock())
