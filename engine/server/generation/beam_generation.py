"""Runs beam searches on the engine: one single-token request per beam and step.

The prefix cache holds the shared prefixes. From outside it is a Generation with a single step.
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

_MAX_CONCURRENT_BEAMS = 64  # of one request


class BeamGeneration(Generation):
    def __init__(
        self, engine: AsyncEngine, metrics: Metrics, choices: Sequence[Choice], params: BeamSearchParams
    ) -> None:
        """`choices`: one per beam, grouped by prompt."""
        super().__init__(engine, metrics, choices)
        self._params = params
        self._engine_hold = ExitStack()
        self._is_aborted = False
        self._open_streams: set[TokenStream] = set()
        self._searches: list[asyncio.Task[list[ChoiceDelta]]] = []

    async def __aenter__(self) -> Self:
        self._engine_hold.enter_context(self._engine.hold(new_sequence_id(), self._abort))
        return self

    async def _close(self) -> None:
        for search in self._searches:
            search.cancel()
        for choice in self._choices:
            choice.end(FinishReason.ABORT, self._metrics)
        await super()._close()
        self._engine_hold.close()

    def steps(self) -> AsyncIterator[list[ChoiceDelta]]:
        return self._steps()

    async def _steps(self) -> AsyncIterator[list[ChoiceDelta]]:
        width = self._params.width
        groups = [self._choices[first : first + width] for first in range(0, len(self._choices), width)]
        prompt_slots = asyncio.Semaphore(self._max_concurrent_prompts())
        self._searches = [asyncio.create_task(self._search(group, prompt_slots)) for group in groups]
        yield [delta for deltas in await asyncio.gather(*self._searches) for delta in deltas]

    def _max_concurrent_prompts(self) -> int:
        """Limits how much of the engine a request with many prompts can use."""
        requests = [choice.request for choice in self._choices]
        longest = max(len(request.prompt_token_ids) + request.params.max_tokens for request in requests)
        return max(1, min(_MAX_CONCURRENT_BEAMS, MAX_BEAM_TOKENS // longest) // self._params.width)

    async def _search(self, choices: Sequence[Choice], prompt_slots: asyncio.Semaphore) -> list[ChoiceDelta]:
        """Run the search for one prompt; the deltas of its choices."""
        request = choices[0].request
        search = BeamSearch(self._params, request.prompt_token_ids, request.params.max_tokens)
        async with prompt_slots:
            while not (self._is_aborted or search.is_done):
                deltas = await self._step([self._request(request, beam) for beam in search.live])
                for choice in choices:
                    choice.num_cached_tokens = choice.num_cached_tokens or deltas[0].num_cached_tokens
                if all(delta.logprobs for delta in deltas):
                    search.advance([delta.logprobs[0] for delta in deltas])
                else:  # one request, or all of them, were aborted
                    self._is_aborted = True
        found = search.best()
        missing = [Beam()] * (len(choices) - len(found))
        return [self._finish_choice(*pair) for pair in zip(choices, [*found, *missing], strict=True)]

    def _request(self, whole: EngineRequest, beam: Beam) -> EngineRequest:
        requested, needed = whole.params.logprobs or 0, self._params.num_candidates
        return EngineRequest(
            request_id=new_sequence_id(),
            group=whole.group,
            prompt_token_ids=[*whole.prompt_token_ids, *beam.token_ids],
            params=SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprobs=ALL_LOGPROBS if requested == ALL_LOGPROBS else max(requested, needed),
            ),
            arrival_time=whole.arrival_time,
            priority=whole.priority,
            cache_salt=whole.cache_salt,
            adapter=whole.adapter,
        )

    async def _step(self, requests: Sequence[EngineRequest]) -> list[TokenDelta]:
        streams: list[TokenStream] = []
        try:
            for request in requests:
                streams.append(self._engine.stream(request, is_held=True))
            self._open_streams.update(streams)
            return [await self._read(stream) for stream in streams]
        finally:
            self._open_streams.difference_update(streams)
            for stream in streams:
                await stream.aclose()

    async def _read(self, stream: TokenStream) -> TokenDelta:
        """The stream's only token."""
        delta = await anext(stream)
        if delta.finish_reason is FinishReason.ERROR:
            raise delta.error or GenerationFailed("The engine failed to continue this request.")
        if delta.finish_reason is FinishReason.ABORT and not self._engine.is_alive:
            raise ShuttingDown("The server is shutting down; this response is incomplete.")
        return delta

    def _abort(self) -> None:
        self._is_aborted = True
        for stream in self._open_streams:
            self._engine.abort(stream.request_id)

    def _finish_choice(self, choice: Choice, beam: Beam) -> ChoiceDelta:
        reason = FinishReason.ABORT if self._is_aborted else FinishReason.LENGTH
        delta = TokenDelta(
            request_id=choice.request.request_id,
            token_ids=beam.token_ids,
            finish_reason=reason if beam.end_token is None else FinishReason.STOP,
            stop_reason=beam.end_token,
            ends_with_stop_token=beam.end_token is not None and self._params.keeps_end_token,
            num_cached_tokens=choice.num_cached_tokens,
            logprobs=beam.logprobs,
        )
        return choice.finish_at_once(delta, self._metrics)
