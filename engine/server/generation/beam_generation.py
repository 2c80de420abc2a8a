"""Runs beam searches on the engine: for each step of a beam, a request of one token.

The prefix cache keeps what they share. Looks like any generation from outside, and brings all at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Self

from engine.core.async_engine import AsyncEngine, TokenStream
from engine.core.types import (
    ALL_LOGPROBS,
    EngineRequest,
    FinishReason,
    SamplingParams,
    TokenDelta,
)
from engine.errors import GenerationFailed
from engine.server.generation.beam_search import Beam, BeamSearch, BeamSearchParams
from engine.server.generation.generation import Choice, ChoiceDelta, Generation
from engine.server.http.errors import ShuttingDown
from engine.server.http.request_ids import new_sequence_id
from engine.server.model.metrics import Metrics
from engine.server.protocol.limits import MAX_BEAM_TOKENS

_MAX_AT_A_TIME = 64  # beams of a request in the engine


class BeamGeneration(Generation):
    def __init__(
        self, engine: AsyncEngine, metrics: Metrics, choices: Sequence[Choice], rule: BeamSearchParams
    ) -> None:
        """`choices`: as many as there are beams for each prompt, one prompt after the other."""
        super().__init__(engine, metrics, choices)
        self._rule = rule
        self._hold = ExitStack()
        self._is_aborted = False
        self._open: set[TokenStream] = set()
        self._searches: list[asyncio.Task[list[ChoiceDelta]]] = []

    async def __aenter__(self) -> Self:
        self._hold.enter_context(self._engine.hold(new_sequence_id(), self._abort))
        return self

    async def _leave(self) -> None:
        for search in self._searches:
            search.cancel()
        for choice in self._choices:
            choice.end(FinishReason.ABORT, self._metrics)
        await super()._leave()
        self._hold.close()

    def steps(self) -> AsyncIterator[list[ChoiceDelta]]:
        return self._steps()

    async def _steps(self) -> AsyncIterator[list[ChoiceDelta]]:
        width = self._rule.width
        groups = [self._choices[first : first + width] for first in range(0, len(self._choices), width)]
        turns = asyncio.Semaphore(self._num_at_a_time())
        self._searches = [asyncio.create_task(self._search(group, turns)) for group in groups]
        yield [delta for deltas in await asyncio.gather(*self._searches) for delta in deltas]

    def _num_at_a_time(self) -> int:
        """Prompts: a request with many must not take the engine for itself."""
        requests = [choice.request for choice in self._choices]
        longest = max(len(one.prompt_token_ids) + one.params.max_tokens for one in requests)
        return max(1, min(_MAX_AT_A_TIME, MAX_BEAM_TOKENS // longest) // self._rule.width)

    async def _search(self, choices: Sequence[Choice], turns: asyncio.Semaphore) -> list[ChoiceDelta]:
        """What becomes of one prompt's choices."""
        request = choices[0].request
        search = BeamSearch(self._rule, request.prompt_token_ids, request.params.max_tokens)
        async with turns:
            while not (self._is_aborted or search.is_done):
                deltas = await self._step([self._request(request, beam) for beam in search.live])
                for choice in choices:
                    choice.num_cached_tokens = choice.num_cached_tokens or deltas[0].num_cached_tokens
                if all(delta.logprobs for delta in deltas):
                    search.advance([delta.logprobs[0] for delta in deltas])
                else:  # the abort of a single one of them, or of all
                    self._is_aborted = True
        found = search.best()
        missing = [Beam()] * (len(choices) - len(found))
        return [self._conclude(*pair) for pair in zip(choices, [*found, *missing], strict=True)]

    def _request(self, whole: EngineRequest, beam: Beam) -> EngineRequest:
        asked, needed = whole.params.logprobs or 0, self._rule.num_looked_at
        return EngineRequest(
            request_id=new_sequence_id(),
            group=whole.group,
            prompt_token_ids=[*whole.prompt_token_ids, *beam.token_ids],
            params=SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprobs=ALL_LOGPROBS if asked == ALL_LOGPROBS else max(asked, needed),
            ),
            arrival_time=whole.arrival_time,
            priority=whole.priority,
            cache_salt=whole.cache_salt,
        )

    async def _step(self, requests: Sequence[EngineRequest]) -> list[TokenDelta]:
        streams: list[TokenStream] = []
        try:
            for request in requests:
                streams.append(self._engine.stream(request, is_held=True))
            self._open.update(streams)
            return [await self._read(stream) for stream in streams]
        finally:
            self._open.difference_update(streams)
            for stream in streams:
                await stream.aclose()

    async def _read(self, stream: TokenStream) -> TokenDelta:
        """Its one token."""
        delta = await anext(stream)
        if delta.finish_reason is FinishReason.ERROR:
            raise delta.error or GenerationFailed("The engine could not go on with this request.")
        if delta.finish_reason is FinishReason.ABORT and not self._engine.is_alive:
            raise ShuttingDown("The server is shutting down; this answer is not complete.")
        return delta

    def _abort(self) -> None:
        self._is_aborted = True
        for stream in self._open:
            self._engine.abort(stream.request_id)

    def _conclude(self, choice: Choice, beam: Beam) -> ChoiceDelta:
        reason = FinishReason.ABORT if self._is_aborted else FinishReason.LENGTH
        delta = TokenDelta(
            request_id=choice.request.request_id,
            token_ids=beam.token_ids,
            finish_reason=reason if beam.end_token is None else FinishReason.STOP,
            stop_reason=beam.end_token,
            ends_with_stop_token=beam.end_token is not None and self._rule.keeps_end,
            num_cached_tokens=choice.num_cached_tokens,
            logprobs=beam.logprobs,
        )
        return choice.conclude(delta, self._metrics)
