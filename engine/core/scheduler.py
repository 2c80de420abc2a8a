"""Continuous batching: which tokens of which sequences run in the next step.

A pure state machine: no clock of its own, no thread, no tensors. Each step, the sequences that decode come
first, one token each; what remains of the token budget goes to prompts, in chunks. Beside decodes the budget
for prompts may be a smaller one, so that no step takes long while streams flow. When blocks run out, the
lowest in rank loses its own and is computed again later, outputs included.

Rank is when a sequence is due: its arrival, put off by a fixed time for each level of priority. So of those
that wait, the more urgent goes first, but only as long as the other hasn't waited that much longer; who runs
isn't interrupted for it unless blocks run out. While several API requests are there, none has more than its
share of the seats and of the prompts' tokens (fair_share.py, prompt_budget.py): who would take more is
passed over, or gives seats back.

Why nothing waits for ever: only finitely many can ever be due before a given sequence. Of those that run, the
first in rank has a token in every step and is never preempted: not for blocks, because alone it always fits,
its length being limited by the whole cache; not for a seat, because a request keeps its first in rank. So it
ends, and so, one after the other, do all that run. Of those that wait, the first in rank is asked first, and
nobody passes it while it lacks blocks. It is passed over only while its request has its share of seats, while
prompts that run have its share of tokens or what may be told of logprobs, or compute what it begins with:
always until sequences that run have ended.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from itertools import islice
from operator import attrgetter

from engine.core.batch import Batch, StepResult
from engine.core.block_manager import BlockManager
from engine.core.fair_share import FairShare, in_turn
from engine.core.logits_processors import LogitsProcessorFactory
from engine.core.prefix_cache import PrefixCache
from engine.core.prompt_budget import PromptBudget
from engine.core.request_check import RequestCheck
from engine.core.sequence import Finish, SequenceState, StopRule
from engine.core.types import EngineRequest, EngineStats, FinishReason, PositionLogprobs, TokenDelta
from engine.errors import ConfigError, InvalidRequest

_by_rank = attrgetter("rank")


class Scheduler:
    """Owns every live sequence. `schedule` and `update` alternate; `add` and `abort` come between steps."""

    def __init__(
        self,
        cache: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        vocab_size: int,
        max_prefill_beside_decodes: int | None = None,
        eos_token_ids: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_prefill_beside_decodes`: tokens of prompts in a step that has decodes; None = what is left.

        Raises ConfigError for limits that allow nothing to run.
        """
        if min(max_num_seqs, max_num_batched_tokens) < 1 or max_model_len < 2:
            raise ConfigError(
                f"max_num_seqs {max_num_seqs} and max_num_batched_tokens {max_num_batched_tokens} must be at "
                f"least 1, max_model_len {max_model_len} at least 2."
            )
        self._cache = cache
        self._clock = clock
        self.max_num_batched_tokens = max_num_batched_tokens
        self._max_prefill_beside_decodes = max(1, max_prefill_beside_decodes or max_num_batched_tokens)
        # Every running sequence can decode in every step.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        # A sequence alone always fits into the cache.
        self.max_model_len = min(max_model_len, cache.num_blocks * cache.block_size)
        self._vocab_size = vocab_size
        self._request_check = RequestCheck(self.max_model_len, vocab_size)
        self._stop_rule = StopRule(tuple(eos_token_ids), self.max_model_len)
        self._sequences: dict[str, SequenceState] = {}
        self._waiting: list[SequenceState] = []  # both sorted by rank
        self._running: list[SequenceState] = []
        self._in_step: list[SequenceState] = []  # parallel to the sequences of the batch that runs now
        self._shares = FairShare(self.max_num_seqs)
        self._edits = LogitsProcessorFactory()
        self._prefixes = PrefixCache(cache)
        self._num_added = 0
        self._num_preemptions = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0

    def __repr__(self) -> str:
        return f"<Scheduler {len(self._running)} running, {len(self._waiting)} waiting, {self._cache!r}>"

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    # Requests

    def check(self, request: EngineRequest) -> None:
        """Raise InvalidRequest if the request could never run. Reads constants only: any thread may ask."""
        self._request_check.check(request)

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises InvalidRequest as `check` does, and for an id that is in use."""
        self.check(request)
        if request.request_id in self._sequences:
            raise InvalidRequest(f"A request {request.request_id!r} is running already.", param="request_id")
        edits = self._edits.make(request.params, request.prompt_token_ids)
        group, due = self._shares.join(request)
        self._num_added += 1
        sequence = SequenceState(
            request,
            group,
            rank=(due, self._num_added),
            token_ids=list(request.prompt_token_ids),
            edits=edits,
        )
        self._sequences[request.request_id] = sequence
        insort(self._waiting, sequence, key=_by_rank)

    def abort(self, request_id: str) -> TokenDelta | None:
        """End a request and free its blocks at once; its last delta, or None if there is no such request.

        A step that is running now may still write to the blocks: they aren't given out before `schedule`.
        """
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._end(sequence, Finish(FinishReason.ABORT))

    # Steps

    def schedule(self) -> Batch:
        """The next step's work; never empty while there are sequences."""
        for sequence in tuple(self._running):
            self._make_room(sequence)
        chunks = self._chunks()
        chunks.sort(key=lambda chunk: chunk[1] > 1)
        self._in_step = [sequence for sequence, _ in chunks]
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
            if index in result.late and self._stop_rule.is_complete(sequence):  # which is known only now
                deltas.append(self._end(sequence, Finish(FinishReason.STOP)))
                continue
            # Who is late has no next token yet: its last one runs again, and is sampled from then.
            self._advance(sequence, len(scheduled.token_ids) - (index in result.late))
            sequence.prompt_logprobs += result.prompt_logprobs.get(index, ())
            token = result.tokens[index]
            if token is not None:
                deltas.append(self._append(sequence, token, result.logprobs.get(index), now))
            elif sequence.is_prompt_only and not sequence.num_remaining:
                self._prompt_tokens += len(sequence.request.prompt_token_ids)
                deltas.append(self._end(sequence, Finish(FinishReason.LENGTH)))
        self._in_step = []
        return deltas

    def reset_prefix_cache(self) -> None:
        """Forget what is cached; what runs keeps its blocks."""
        self._cache.reset()

    def stats(self) -> EngineStats:
        """Reads counters only: any thread may ask."""
        return EngineStats(
            num_requests_running=len(self._running),
            num_requests_waiting=len(self._waiting),
            kv_cache_usage=self._cache.usage,
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            num_preemptions=self._num_preemptions,
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError if a block has leaked or is held by a sequence that doesn't run."""
        self._cache.check_integrity([sequence.block_ids for sequence in self._sequences.values()])
        if sum(map(len, (self._running, self._waiting))) != len(self._sequences):
            raise RuntimeError(f"{self!r} knows {len(self._sequences)} sequences.")
        self._shares.check_integrity(self._running, self._waiting)

    # Deciding

    def _make_room(self, sequence: SequenceState) -> None:
        """Give a running sequence a block for its next token if it needs one; the last in rank pays for it.

        Prefills have theirs since they were admitted.
        """
        if sequence.num_computed < len(sequence.block_ids) * self._cache.block_size:
            return
        while sequence.block_ids and not self._cache.can_allocate(1):
            self._preempt(self._running[-1])
        if sequence.block_ids:
            self._cache.grow(sequence.block_ids)

    def _chunks(self) -> list[tuple[SequenceState, int]]:
        """Who runs, and how many tokens: decodes, then prompts that were left unfinished, then new ones.

        Of a request, only the last prompt of a step stays unfinished, and those whose logprobs are told,
        which come a part at a time. As decodes are fewer than the budget while prompts run, the first gets
        at least one token.
        """
        chunks = [(sequence, 1) for sequence in self._running if sequence.num_remaining == 1]
        num_tokens = self.max_num_batched_tokens - len(chunks)
        if chunks:
            num_tokens = min(num_tokens, self._max_prefill_beside_decodes)
        prefills = [sequence for sequence in self._running if sequence.num_remaining > 1]
        if not (prefills or (self._waiting and self._may_have_seat())):
            return chunks
        budget = PromptBudget(num_tokens, self._vocab_size, is_contended=self._shares.is_contended)
        for _ in budget.rounds():
            for sequence in prefills:
                if sequence.block_ids:
                    budget.give(sequence)
            prefills += self._admit(budget)
        chunks += budget.given()
        return [chunk for chunk in chunks if chunk[0].block_ids]  # who has lost its seat has none

    def _admit(self, budget: PromptBudget) -> list[SequenceState]:
        """Move waiting sequences to running while there is budget; each takes all the blocks it needs now.

        One free block is left for each running sequence, lest an admission cause a preemption at once. So
        what was preempted for blocks, of which all but one are free again, doesn't come back in the same
        step; nor does who gave a seat back, because its request still has its share.
        """
        admitted: list[SequenceState] = []
        candidates = in_turn(self._waiting, lambda sequence: self._may_go(sequence, budget))
        for sequence in islice(candidates, self.max_num_seqs if budget.num_left else 0):
            if not (budget.num_left and self._may_have_seat()):
                break
            shared = self._prefixes.find(sequence, self._running)
            if shared is None:
                continue
            if len(self._running) >= self.max_num_seqs:
                self._preempt(self._shares.debtor(self._running))
            num_new = self._cache.num_blocks_for(len(sequence.token_ids)) - len(shared)
            if not self._cache.can_allocate(num_new + len(self._running), shared=shared):
                break
            room = self._room(sequence) - len(shared)
            sequence.block_ids = self._cache.allocate(num_new, shared=shared, room=room)
            self._start(sequence, len(shared) * self._cache.block_size)
            admitted.append(sequence)
            budget.give(sequence)
        return admitted

    def _may_go(self, sequence: SequenceState, budget: PromptBudget) -> bool:
        """Whether its request may have a seat, and tokens if any are left."""
        return self._shares.may_sit(sequence.group) and (not budget.num_left or budget.offer(sequence) > 0)

    def _may_have_seat(self) -> bool:
        """Whether one is free, or will be given back."""
        return len(self._running) < self.max_num_seqs or self._shares.has_debtor

    def _room(self, sequence: SequenceState) -> int:
        """The blocks a sequence may come to need, but beyond its present ones no more than its fair share."""
        params = sequence.request.params
        longest = min(len(sequence.request.prompt_token_ids) + params.max_tokens, self.max_model_len)
        fair = self._cache.num_blocks // self.max_num_seqs
        present = self._cache.num_blocks_for(len(sequence.token_ids))
        return min(self._cache.num_blocks_for(longest), present + fair)

    # Acting

    def _start(self, sequence: SequenceState, num_cached_tokens: int) -> None:
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_by_rank)
        self._shares.sit(sequence.group)
        sequence.num_computed = num_cached_tokens
        if sequence.num_cached_tokens is None:  # not after a preemption: it would find its own blocks
            sequence.num_cached_tokens = num_cached_tokens
            sequence.scheduled_time = self._clock()
            self._prefix_cache_queries += len(sequence.token_ids) if self._cache.enable_prefix_caching else 0
            self._prefix_cache_hits += num_cached_tokens

    def _preempt(self, sequence: SequenceState) -> None:
        self._running.remove(sequence)
        insort(self._waiting, sequence, key=_by_rank)
        self._shares.stand(sequence.group)
        self._cache.free(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_computed = 0
        self._num_preemptions += 1

    def _advance(self, sequence: SequenceState, num_tokens: int) -> None:
        """Note that `num_tokens` more are in the cache, and publish the blocks that they filled."""
        first = sequence.num_computed // self._cache.block_size
        sequence.num_computed += num_tokens
        stop = sequence.num_computed // self._cache.block_size
        if stop > first:
            self._cache.extend_keys(sequence.keys, sequence.token_ids, sequence.request.cache_salt)
            self._cache.publish(sequence.block_ids, sequence.keys, first, stop)

    def _append(
        self, sequence: SequenceState, token: int, logprobs: PositionLogprobs | None, now: float
    ) -> TokenDelta:
        self._generation_tokens += 1
        if sequence.first_token_time is None:
            sequence.first_token_time = now
            self._prompt_tokens += len(sequence.request.prompt_token_ids)
        finish = self._stop_rule.append(sequence, token)
        if finish is None:
            return sequence.delta(token, logprobs)
        return self._end(sequence, finish, token, logprobs)

    def _end(
        self,
        sequence: SequenceState,
        finish: Finish,
        token: int | None = None,
        logprobs: PositionLogprobs | None = None,
    ) -> TokenDelta:
        """The one way out, whatever the reason: the sequence is forgotten, its blocks are free."""
        del self._sequences[sequence.request.request_id]
        (self._running if sequence.block_ids else self._waiting).remove(sequence)
        self._shares.leave(sequence, is_running=bool(sequence.block_ids))
        self._cache.free(sequence.block_ids)
        sequence.block_ids = []
        return sequence.last_delta(finish, token, logprobs, self._clock())
