"""Sends what a generation brings, whole or in pieces, and ends it when its client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import EngineError
from engine.server.errors import envelope, error_response
from engine.server.generation import Choice, ChoiceDelta, Generation
from engine.server.large_work import LargeWork, Pace
from engine.server.stream import Chunks, ReadUsage, error_event
from engine.types import FinishReason

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_MANY_TOLD = 2048  # logprobs: from here on, the answer is written in a thread
_WRITTEN_AT_ONCE = 64  # entries of a list
_DEPTH_OF_CHOICES = 1


class FinishedChoice:
    """A choice whose deltas are complete."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.deltas: list[ChoiceDelta] = []

    @property
    def num_told(self) -> int:
        """Places with logprobs in it, and the prompt's alternatives."""
        prompt = self.deltas[0].prompt_logprobs or () if self.deltas else ()
        per_place = max((1 + len(one.top) for one in prompt if one is not None), default=1)
        return len(prompt) * per_place + sum(len(delta.logprobs) for delta in self.deltas)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.deltas[-1].finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        return self.deltas[-1].stop_reason


ToObject = Callable[[Sequence[FinishedChoice], ReadUsage], dict[str, Any]]


class WholeAnswer:
    """An ASGI response: one JSON object, once all choices have ended."""

    def __init__(
        self,
        generation: Generation,
        choices: Sequence[Choice],
        to_object: ToObject,
        large_work: LargeWork,
    ) -> None:
        self._generation = generation
        self._large_work = large_work
        self._finished = {choice: FinishedChoice(choice.index) for choice in choices}
        self._to_object = to_object

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await unless_client_leaves(receive, self._collect)
        if response is not None:
            await response(scope, receive, send)

    async def _collect(self) -> Response:
        try:
            async with self._generation:
                async for deltas in self._generation.steps():
                    for delta in deltas:
                        self._finished[delta.choice].deltas.append(delta)
        except EngineError as error:
            return error_response(error)
        num_told = sum(choice.num_told for choice in self._finished.values())
        content = await self._large_work.run(self._write) if num_told > _MANY_TOLD else self._write()
        return Response(content, media_type="application/json")

    def _write(self) -> bytes:
        # Reading the answer may bring counts of its own: usage comes after.
        body = self._to_object(list(self._finished.values()), self._generation.read_usage)
        return _written(body, Pace()).encode()


class StreamedAnswer:
    """An ASGI response: events as the tokens come.

    The status is sent with the first event, so that a request that fails before it gets a status of its own.
    After it, an error is an event, and the connection breaks: it must not look like an end.
    """

    def __init__(self, generation: Generation, chunks: Chunks) -> None:
        self._generation = generation
        self._chunks = chunks
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stream() -> EngineError | None:
            try:
                await self._stream(send)
            except EngineError as error:
                return error
            return None

        error = await unless_client_leaves(receive, stream)
        if error is not None and not self._has_begun:
            await error_response(error)(scope, receive, send)
        elif error is not None:
            log.warning("A stream ends with an error: %s", error)
            await self._send(send, error_event(envelope(error)))

    async def _stream(self, send: Send) -> None:
        async with self._generation as generation:
            async for deltas in generation.steps():
                await self._send(send, self._chunks.step(deltas, generation.read_usage))
        await self._send(send, self._chunks.end(self._generation.read_usage()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, events: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await send({"type": "http.response.body", "body": events, "more_body": True})


def _written(value: Any, pace: Pace, depth: int = 0) -> str:
    """An answer as JSON, a part at a time: one long call would keep all other threads from running."""
    pace.rest()
    if isinstance(value, dict) and depth <= _DEPTH_OF_CHOICES + 2:
        fields = (f"{json.dumps(name)}: {_written(value[name], pace, depth + 1)}" for name in value)
        return f"{{{', '.join(fields)}}}"
    if isinstance(value, list) and depth == _DEPTH_OF_CHOICES:
        return f"[{', '.join(_written(choice, pace, depth + 1) for choice in value)}]"
    if isinstance(value, list):
        starts = range(0, len(value), _WRITTEN_AT_ONCE)
        parts = (value[start : start + _WRITTEN_AT_ONCE] for start in starts)
        return f"[{', '.join(_dumped(part, pace)[1:-1] for part in parts)}]"
    return _dumped(value, pace)


def _dumped(value: Any, pace: Pace) -> str:
    pace.rest()
    return json.dumps(value, ensure_ascii=False)


STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def unless_client_leaves(
    receive: Receive, work: Callable[[], Coroutine[Any, Any, Result]]
) -> Result | None:
    """The result of `work`, or None if the client left first and `work` was cancelled.

    Two tasks: whichever ends first ends the other, and both have ended when this returns.
    """
    working = asyncio.create_task(work())
    leaving = asyncio.create_task(_until_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
