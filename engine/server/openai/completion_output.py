"""Sends what a generation brings, whole or in pieces, and ends it when its client leaves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.core.types import FinishReason
from engine.errors import EngineError
from engine.server.generation.generation import Choice, ChoiceDelta, Generation, merge_deltas
from engine.server.http.client_disconnect import unless_client_leaves
from engine.server.http.errors import envelope, error_response
from engine.server.http.large_work import GilThrottle, LargeWork
from engine.server.http.sse import STREAM_HEADERS
from engine.server.openai.chunks import Chunks, ReadUsage, error_event
from engine.server.openai.packed_logprobs import PackedLogprobs, Rows

log = logging.getLogger(__name__)


_MANY_TOLD = 2048  # tokens and logprobs: from here on, the answer is written in a thread
_KEPT_APART = 64  # what so many steps brought a choice becomes one object
_PIECE_CHARS = 2**16  # of an answer, that are sent at once
_WRITTEN_AT_ONCE = 64  # entries of a list
_DEPTH_OF_CHOICES = 1


class FinishedChoice:
    """A choice as it is collected: what a long answer's steps brought is kept in few objects."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._kept: list[ChoiceDelta] = []
        self._latest: list[ChoiceDelta] = []
        self._num_tokens = 0
        self._logprobs = PackedLogprobs()

    def add(self, delta: ChoiceDelta) -> None:
        if delta.logprobs:
            self._logprobs.extend(delta.logprobs)
            delta = delta._replace(logprobs=())
        self._num_tokens += len(delta.token_ids)
        self._latest.append(delta)
        if len(self._latest) == _KEPT_APART:
            self._kept.append(merge_deltas(self._latest))
            self._latest = []

    @property
    def _deltas(self) -> list[ChoiceDelta]:
        return [*self._kept, *self._latest]

    @property
    def deltas(self) -> list[ChoiceDelta]:
        """All of its logprobs stand in the first."""
        first, *others = self._deltas
        return [first._replace(logprobs=self._logprobs), *others]

    @property
    def num_told(self) -> int:
        """Its tokens and logprobs, and the prompt's alternatives: what there is to write."""
        prompt = self._deltas[0].prompt_logprobs or () if self._deltas else ()
        per_place = max((1 + len(one.top) for one in prompt if one is not None), default=1)
        return len(prompt) * per_place + self._logprobs.num_entries + self._num_tokens

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self._deltas)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._deltas[-1].finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        return self._deltas[-1].stop_reason


ToObject = Callable[[Sequence[FinishedChoice], ReadUsage], dict[str, Any]]


class CompletionObject:
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
                        self._finished[delta.choice].add(delta)
        except EngineError as error:
            return error_response(error)
        num_told = sum(choice.num_told for choice in self._finished.values())
        pieces = await self._large_work.run(self._write) if num_told > _MANY_TOLD else self._write()
        return _Pieces(pieces)

    def _write(self) -> list[bytes]:
        # Reading the answer may bring counts of its own: usage comes after.
        throttle = GilThrottle()
        body = self._to_object(_Paced(self._finished.values(), throttle), self._generation.read_usage)
        out = _Out()
        _write(body, out, throttle)
        return out.pieces


class _Paced(list[FinishedChoice]):
    """Choices that are looked at one after the other, with room for others between them."""

    def __init__(self, choices: Iterable[FinishedChoice], throttle: GilThrottle) -> None:
        super().__init__(choices)
        self._throttle = throttle

    def __iter__(self) -> Iterator[FinishedChoice]:
        for choice in super().__iter__():
            self._throttle.pause()
            yield choice


class _Pieces(Response):
    """A JSON answer whose bytes are sent as they were written, not copied into one."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        length = str(sum(map(len, pieces)))
        super().__init__(None, headers={"content-length": length}, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": self._pieces[-1], "more_body": False})


class _Out:
    """Bytes that are written, in pieces of a size to be sent."""

    def __init__(self) -> None:
        self._last: list[str] = []
        self._num_chars = 0
        self._pieces: list[bytes] = []

    def add(self, text: str) -> None:
        self._last.append(text)
        self._num_chars += len(text)
        if self._num_chars > _PIECE_CHARS:
            self._cut()

    def _cut(self) -> None:
        self._pieces.append("".join(self._last).encode())
        self._last, self._num_chars = [], 0

    @property
    def pieces(self) -> list[bytes]:
        """At least one, when all is written."""
        if self._last:
            self._cut()
        return self._pieces


class CompletionStream:
    """An ASGI response: events as the tokens come.

    The status is sent with the first event, so that a request that fails before it gets a status of its own.
    After it, an error is an event, and the connection breaks: it must not look like an end.
    """

    def __init__(self, generation: Generation, chunks: Chunks, large_work: LargeWork) -> None:
        self._generation = generation
        self._chunks = chunks
        self._large_work = large_work
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
                await self._send(send, await self._written(deltas, generation.read_usage))
        await self._send(send, self._chunks.end(self._generation.read_usage()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _written(self, deltas: list[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        """A step's events; those full of logprobs are written in a thread."""
        write = partial(self._chunks.step, deltas, read_usage)
        return await self._large_work.run(write) if _num_told(deltas) > _MANY_TOLD else write()

    async def _send(self, send: Send, events: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await send({"type": "http.response.body", "body": events, "more_body": True})


def _write(value: Any, out: _Out, throttle: GilThrottle, depth: int = 0) -> None:
    """An answer as JSON, a part at a time: one long call would keep all other threads from running."""
    throttle.pause()
    if isinstance(value, dict) and depth <= _DEPTH_OF_CHOICES + 2:
        for number, (name, inner) in enumerate(value.items()):
            out.add(f"{', ' if number else '{'}{_dumped(name)}: ")
            _write(inner, out, throttle, depth + 1)
        out.add("}" if value else "{}")
    elif isinstance(value, list) and depth == _DEPTH_OF_CHOICES:
        for number, choice in enumerate(value):
            out.add(", " if number else "[")
            _write(choice, out, throttle, depth + 1)
        out.add("]" if value else "[]")
    elif isinstance(value, list | Rows):
        _write_list(value, out, throttle)
    else:
        out.add(_dumped(value))


def _write_list(value: list[Any] | Rows[Any], out: _Out, throttle: GilThrottle) -> None:
    rows = value if isinstance(value, Rows) else Rows(value, lambda entry: entry)
    separator = "["
    for part in rows.parts(_WRITTEN_AT_ONCE):
        out.add(f"{separator}{_dumped(part)[1:-1]}")
        separator = ", "
        throttle.pause()
    out.add("[]" if separator == "[" else "]")


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _num_told(deltas: Iterable[ChoiceDelta]) -> int:
    """Logprobs, alternatives included."""
    return sum(
        len(positions) * (1 + max((len(one.top) for one in positions if one is not None), default=0))
        for delta in deltas
        for positions in (delta.logprobs, (delta.prompt_logprobs or ())[1:])
        if positions
    )
