"""The tokens of one request, as the HTTP server's loop reads them. Knows nothing of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from engine.core.types import PositionLogprobs, TokenDelta
from engine.errors import EngineDead


class TokenStream:
    """The tokens of one request. Leaving it before its end aborts the request, so use it as a context:

        async with engine.stream(request) as stream:
            async for delta in stream: ...

    Unread deltas are merged into one. For one reader at a time. Iteration raises EngineDead if the engine
    ends before the request does.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._abort = abort
        self._ready = asyncio.Event()  # there is something to read, or the stream has ended
        self._unread: TokenDelta | None = None
        self._unread_tokens: list[int] = []
        self._unread_logprobs: list[PositionLogprobs] = []
        self._is_ended = False
        self._failure: str | None = None

    def __repr__(self) -> str:
        state = "ended" if self._is_ended else "open"
        return f"<TokenStream {self.request_id} {state}, {len(self._unread_tokens)} tokens unread>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        await self._ready.wait()
        if self._unread is not None:
            return self._take_unread(self._unread)
        if self._failure is not None:
            raise EngineDead(self._failure)
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading and drop unread deltas. Never waits, so that a cancelled task can close it too."""
        if not self._is_ended:
            self._abort(self.request_id)
        self._unread = None
        self.end()

    def put(self, delta: TokenDelta) -> None:
        """Called by the engine, on the loop. Ignored once the reader has left."""
        if self._is_ended:
            return
        if self._unread is not None:
            delta = replace(
                delta,
                timings=delta.timings or self._unread.timings,
                prompt_logprobs=delta.prompt_logprobs or self._unread.prompt_logprobs,
            )
        self._unread = delta
        self._unread_tokens += delta.token_ids
        self._unread_logprobs += delta.logprobs
        self._is_ended = delta.finish_reason is not None
        self._ready.set()

    def end(self, failure: str | None = None) -> None:
        """Called by the engine, on the loop: no more deltas follow; `failure` is the reason if it failed."""
        if not self._is_ended:
            self._failure = failure
        self._is_ended = True
        self._ready.set()

    def _take_unread(self, delta: TokenDelta) -> TokenDelta:
        if len(self._unread_tokens) != len(delta.token_ids):
            delta = replace(
                delta, token_ids=tuple(self._unread_tokens), logprobs=tuple(self._unread_logprobs)
            )
        self._unread = None
        self._unread_tokens.clear()
        self._unread_logprobs.clear()
        if not self._is_ended:
            self._ready.clear()
        return delta
