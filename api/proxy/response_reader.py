"""Reads a response from a coroutine, with back-pressure on the engine's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from api.proxy.upstream import ResponseHead, UpstreamConnection

# Read ahead of a slow client by at most this much, plus one read of the socket.
_READ_AHEAD_BYTES = 64 * 1024


class ResponseReader:
    """The connection's sink; a coroutine reads from it, woken by a future."""

    __slots__ = (
        "_body",
        "_buffered",
        "_drained",
        "_error",
        "_has_failed",
        "_is_paused",
        "_pass_on",
        "_waiter",
        "connection",
        "head",
        "is_complete",
    )

    def __init__(self, connection: UpstreamConnection) -> None:
        self.head: ResponseHead | None = None
        self.connection = connection
        self._body: list[bytes] = []
        self._buffered = 0
        self.is_complete = False
        self._is_paused = False
        self._has_failed = False
        self._error: Exception | None = None  # until it has been raised
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._pass_on: Callable[[bytes], bool] | None = None

    def pass_on(self, pass_on: Callable[[bytes], bool] | None) -> None:
        """While `read` waits, offer pieces to `pass_on` in the connection's callback; True = it has sent one.

        The last piece is not offered, nor any while an earlier one is unread.
        """
        self._pass_on = pass_on

    async def read_head(self) -> ResponseHead:
        """Wait for the head. Raises UpstreamError, ClientGone."""
        while self.head is None:
            await self._wait()
        return self.head

    def take_body(self) -> tuple[bytes, bool]:
        """All body bytes received since the last call, and whether they are the last."""
        pieces = self._body
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        if self._is_paused:
            self._is_paused = False
            self.connection.resume_reading()
        return body, self.is_complete

    async def read(self) -> tuple[bytes, bool]:
        """Wait for body bytes or the end, then as `take_body`. Raises UpstreamError, ClientGone."""
        while not self._body and not self.is_complete:
            await self._wait()
        return self.take_body()

    async def drain(self) -> None:
        """Wait until the request's bytes are written, or the exchange has ended."""
        if self.connection.write_paused and not self.is_complete and not self._has_failed:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def stop(self, error: Exception) -> None:
        """Abort a running exchange: close the connection and raise `error` in the reading coroutine."""
        if not self.is_complete and not self._has_failed:
            self.connection.abort()
            self.failed(error)

    async def _wait(self) -> None:
        if self._has_failed:
            # A reference kept here or in this frame would keep all frames of its traceback, and so all
            # buffers, alive until the garbage collector runs.
            error, self._error = self._error, None
            try:
                raise error or RuntimeError("the reader's error has been raised before")
            finally:
                del error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ResponseSink

    def received(self, head: ResponseHead | None, body: bytes, is_complete: bool) -> None:
        if head is not None:
            self.head = head
        if self._pass_on is not None and body and not is_complete:
            is_waited_for = self._waiter is not None and not self._waiter.done()
            if is_waited_for and self._pass_on(body):
                return
        if body:
            self._body.append(body)
            self._buffered += len(body)
            if self._buffered > _READ_AHEAD_BYTES and not is_complete and not self._is_paused:
                self._is_paused = True
                self.connection.pause_reading()
        if is_complete:
            self.is_complete = True
            self._is_paused = False
            self.resume_writing()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def failed(self, error: Exception) -> None:
        self._has_failed = True
        self._error = error
        self.resume_writing()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
