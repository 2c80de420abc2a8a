"""Collects a generation's choices and writes them as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.core.types import FinishReason
from engine.server.generation.generation import Choice, ChoiceDelta, ReadUsage, merge_deltas
from engine.server.generation.output import LARGE_OUTPUT
from engine.server.http.large_work import GilThrottle, LargeWork
from engine.server.openai.packed_logprobs import PackedLogprobs, Rows

_DELTAS_PER_MERGE = 64  # deltas of a choice that are merged into one object
_CHUNK_CHARS = 2**16  # sent at once
_ENTRIES_AT_ONCE = 64  # of a list, written in one call
_CHOICES_DEPTH = 1


class FinishedChoice:
    """A choice while it is collected; the deltas of a long output are merged into few objects."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._merged: list[ChoiceDelta] = []
        self._latest: list[ChoiceDelta] = []
        self._num_tokens = 0
        self._logprobs = PackedLogprobs()

    def add(self, delta: ChoiceDelta) -> None:
        if delta.logprobs:
            self._logprobs.extend(delta.logprobs)
            delta = delta._replace(logprobs=())
        self._num_tokens += len(delta.token_ids)
        self._latest.append(delta)
        if len(self._latest) == _DELTAS_PER_MERGE:
            self._merged.append(merge_deltas(self._latest))
            self._latest = []

    @property
    def _deltas(self) -> list[ChoiceDelta]:
        return [*self._merged, *self._latest]

    @property
    def deltas(self) -> list[ChoiceDelta]:
        """The deltas; the first one has all logprobs."""
        first, *others = self._deltas
        return [first._replace(logprobs=self._logprobs), *others]

    @property
    def num_values(self) -> int:
        """The number of tokens and logprobs to write, including the prompt's."""
        prompt = self._deltas[0].prompt_logprobs or () if self._deltas else ()
        per_token = max((1 + len(position.top) for position in prompt if position is not None), default=1)
        return len(prompt) * per_token + self._logprobs.num_entries + self._num_tokens

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


class WholeCompletion:
    """Writes a response as one JSON object; a BodyWriter."""

    def __init__(self, choices: Sequence[Choice], to_object: ToObject, large_work: LargeWork) -> None:
        self._finished = {choice: FinishedChoice(choice.index) for choice in choices}
        self._to_object = to_object
        self._large_work = large_work

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        for delta in deltas:
            self._finished[delta.choice].add(delta)

    async def body(self, read_usage: ReadUsage) -> Response:
        write = partial(self._write_json, read_usage)
        num_values = sum(choice.num_values for choice in self._finished.values())
        return _ChunkedResponse(await self._large_work.run(write) if num_values > LARGE_OUTPUT else write())

    def _write_json(self, read_usage: ReadUsage) -> list[bytes]:
        # Usage is read last: reading the choices updates counts such as reasoning tokens.
        throttle = GilThrottle()
        body = self._to_object(_PausingList(self._finished.values(), throttle), read_usage)
        writer = _ChunkWriter()
        _write_json(body, writer, throttle)
        return writer.chunks


class _PausingList(list[FinishedChoice]):
    """Choices whose iteration pauses between elements."""

    def __init__(self, choices: Iterable[FinishedChoice], throttle: GilThrottle) -> None:
        super().__init__(choices)
        self._throttle = throttle

    def __iter__(self) -> Iterator[FinishedChoice]:
        for choice in super().__iter__():
            self._throttle.pause()
            yield choice


class _ChunkedResponse(Response):
    """A JSON response sent in chunks, without joining them."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks
        length = str(sum(map(len, chunks)))
        super().__init__(None, headers={"content-length": length}, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for chunk in self._chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": self._chunks[-1], "more_body": False})


class _ChunkWriter:
    """Collects written text as chunks of bytes."""

    def __init__(self) -> None:
        self._last: list[str] = []
        self._num_chars = 0
        self._chunks: list[bytes] = []

    def add(self, text: str) -> None:
        self._last.append(text)
        self._num_chars += len(text)
        if self._num_chars > _CHUNK_CHARS:
            self._finish_chunk()

    def _finish_chunk(self) -> None:
        self._chunks.append("".join(self._last).encode())
        self._last, self._num_chars = [], 0

    @property
    def chunks(self) -> list[bytes]:
        """All chunks, at least one; call when everything is written."""
        if self._last:
            self._finish_chunk()
        return self._chunks


def _write_json(value: Any, writer: _ChunkWriter, throttle: GilThrottle, depth: int = 0) -> None:
    """Write a response as JSON in parts: one long call would block all other threads."""
    throttle.pause()
    if isinstance(value, dict) and depth <= _CHOICES_DEPTH + 2:
        for number, (name, inner) in enumerate(value.items()):
            writer.add(f"{', ' if number else '{'}{_dumped(name)}: ")
            _write_json(inner, writer, throttle, depth + 1)
        writer.add("}" if value else "{}")
    elif isinstance(value, list) and depth == _CHOICES_DEPTH:
        for number, choice in enumerate(value):
            writer.add(", " if number else "[")
            _write_json(choice, writer, throttle, depth + 1)
        writer.add("]" if value else "[]")
    elif isinstance(value, list | Rows):
        _write_list(value, writer, throttle)
    else:
        writer.add(_dumped(value))


def _write_list(value: list[Any] | Rows[Any], writer: _ChunkWriter, throttle: GilThrottle) -> None:
    rows = value if isinstance(value, Rows) else Rows(value, lambda entry: entry)
    separator = "["
    for part in rows.parts(_ENTRIES_AT_ONCE):
        writer.add(f"{separator}{_dumped(part)[1:-1]}")
        separator = ", "
        throttle.pause()
    writer.add("[]" if separator == "[" else "]")


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
