"""Sends a generation's output in any protocol: as one body, or as a stream of server-sent events.

The rules for the end stand here. The client has left: the generation is aborted. It fails before its first
event: an error status. It fails later: the error is an event, and the stream has no clean end, unless the
protocol itself has an event for the end of a failed response.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.core.types import PositionLogprobs
from engine.errors import EngineError
from engine.server.generation.generation import ChoiceDelta, Generation, ReadUsage, Usage
from engine.server.http.client_disconnect import CancellableResponse, cancel_on_disconnect
from engine.server.http.errors import error_response
from engine.server.http.large_work import LargeWork
from engine.server.http.sse import STREAM_HEADERS, error_event

log = logging.getLogger(__name__)

LARGE_OUTPUT = 2048  # tokens and logprobs; above this, they are written in a thread


class BodyWriter(Protocol):
    """Writes one response as a whole."""

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        """Take the deltas of one step."""
        ...

    async def body(self, read_usage: ReadUsage) -> Response:
        """The response, when all choices have ended."""
        ...


class WholeBody(CancellableResponse):
    """An ASGI response: one body, sent when all choices have ended."""

    def __init__(self, generation: Generation, writer: BodyWriter) -> None:
        super().__init__(partial(collect, generation, writer))


async def collect(generation: Generation, writer: BodyWriter) -> Response:
    """Run a generation to its end; its response. Raises EngineError."""
    async with generation:
        async for deltas in generation.steps():
            writer.add(deltas)
    return await writer.body(generation.read_usage)


class EventWriter(ABC):
    """Writes one response as server-sent events."""

    @abstractmethod
    def step(self, deltas: Sequence[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        """The events of one step, sent together; the first step must have some."""

    @abstractmethod
    def end(self, usage: Usage) -> bytes:
        """The events after the last step."""

    def fail(self, error: EngineError) -> bytes:
        """The events that end a failed response cleanly; empty if the protocol has none."""
        return b""

    def cancel(self, usage: Usage) -> None:
        """Note that the client has left after the first event."""
        return


class EventStream:
    """An ASGI response: the events of a generation. The status is sent with the first event."""

    def __init__(self, generation: Generation, writer: EventWriter, large_work: LargeWork) -> None:
        self._generation = generation
        self._writer = writer
        self._large_work = large_work
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = await cancel_on_disconnect(receive, partial(self._run, send))
        if error is None:
            return
        if not self._has_begun:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        log.warning("Stream failed: %s", error)
        if events := self._writer.fail(error):
            await self._send(send, events)
            await _end(send)
        else:  # an abrupt end: the response must not look complete
            await self._send(send, error_event(error, scope["path"]))

    async def _run(self, send: Send) -> EngineError | None:
        """Send everything; the error if the generation fails."""
        try:
            await self._stream(send)
        except EngineError as error:
            return error
        except asyncio.CancelledError:
            if self._has_begun:
                self._writer.cancel(self._generation.read_usage())
            raise
        return None

    async def _stream(self, send: Send) -> None:
        writer, read_usage = self._writer, self._generation.read_usage
        async with self._generation as generation:
            async for deltas in generation.steps():
                if _num_logprobs(deltas) > LARGE_OUTPUT:
                    events = await self._large_work.run(partial(writer.step, deltas, read_usage))
                else:
                    events = writer.step(deltas, read_usage)
                if events:
                    await self._send(send, events)
        await self._send(send, writer.end(read_usage()))
        await _end(send)

    async def _send(self, send: Send, events: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await send({"type": "http.response.body", "body": events, "more_body": True})


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _num_logprobs(deltas: Sequence[ChoiceDelta]) -> int:
    """The number of logprobs, including alternatives. Called for every token, so it is fast for none."""
    num = 0
    for delta in deltas:
        if delta.logprobs:
            num += _num_entries(delta.logprobs)
        if delta.prompt_logprobs:
            num += _num_entries(delta.prompt_logprobs[1:])
    return num


def _num_entries(positions: Sequence[PositionLogprobs | None]) -> int:
    most = max((len(position.top) for position in positions if position is not None), default=0)
    return len(positions) * (1 + most)
