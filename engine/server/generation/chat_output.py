"""Writes chats in protocols whose stream events are objects that name their type: messages and responses."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from engine.errors import EngineError
from engine.server.generation.chat_events import ChatEvent
from engine.server.generation.chat_run import ChatRun
from engine.server.generation.generation import ChoiceDelta, ReadUsage, Usage
from engine.server.generation.output import EventWriter


class ChatWriter(ABC):
    """Writes one chat. All methods but `whole` return stream events."""

    @abstractmethod
    def start(self, usage: Usage) -> list[dict[str, Any]]:
        """The first events."""

    @abstractmethod
    def feed(self, events: Iterable[ChatEvent]) -> list[dict[str, Any]]: ...

    @abstractmethod
    def end(self, usage: Usage) -> list[dict[str, Any]]:
        """The last events of a complete chat."""

    @abstractmethod
    def whole(self, usage: Usage) -> dict[str, Any]:
        """The whole response, instead of `end`."""

    def fail(self, error: EngineError) -> list[dict[str, Any]]:
        """The last events of a failed chat, if the protocol has such."""
        return []

    def cancel(self, usage: Usage) -> None:
        """Note that the client has left."""
        return


class ChatOutput(EventWriter):
    """A chat's output, whole (a BodyWriter) or as events."""

    def __init__(self, run: ChatRun, writer: ChatWriter) -> None:
        self._run = run
        self._writer = writer
        self._has_begun = False

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        self._writer.feed(self._run.read(deltas))

    async def body(self, read_usage: ReadUsage) -> Response:
        return JSONResponse(self._writer.whole(read_usage()))

    def step(self, deltas: Sequence[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        events = self._run.read(deltas)  # first: it counts reasoning tokens
        if self._has_begun:
            return _encode(self._writer.feed(events))
        self._has_begun = True
        return _encode([*self._writer.start(read_usage()), *self._writer.feed(events)])

    def end(self, usage: Usage) -> bytes:
        return _encode(self._writer.end(usage))

    def fail(self, error: EngineError) -> bytes:
        return _encode(self._writer.fail(error))

    def cancel(self, usage: Usage) -> None:
        self._writer.cancel(usage)


def _encode(events: Iterable[dict[str, Any]]) -> bytes:
    lines = [f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join(lines).encode()
