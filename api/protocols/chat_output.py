"""Reads an engine's chat completion, whole or in chunks, as events; and writes such events in a dialect.

Tolerates what engines do differently: `reasoning` or `reasoning_content`, calls without an index or an id,
no usage, no finish reason before `[DONE]`.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from api.protocols.base import InvalidResponse, Json, StreamTranslator


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of the call that has begun last."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    finish_reason: str
    stop: str | None  # the stop string that ended it, if the engine tells


ChatEvent = Reasoning | Content | CallBegun | CallArguments | Ended


@dataclass(frozen=True, slots=True)
class ChatUsage:
    """Token counts; zeros if the engine sends none. `reasoning`: None = unknown."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int | None = None


class ChatReader:
    """Reads one response of one choice."""

    def __init__(self) -> None:
        self.usage = ChatUsage()
        self.model: str | None = None
        self.has_ended = False
        self._call_key: tuple[Any, Any] | None = None  # index and id of the last call
        self._num_calls = 0

    def read(self, answer: Mapping[str, Any]) -> list[ChatEvent]:
        """The events of a chunk, or of a whole response. Raises InvalidResponse."""
        self.model = _text(answer.get("model")) or self.model
        if (usage := answer.get("usage")) is not None:
            self.usage = _usage(usage)
        events: list[ChatEvent] = []
        try:
            for choice in answer.get("choices") or ():
                if not choice.get("index"):
                    events += self._read_choice(choice)
        except (AttributeError, TypeError, KeyError) as error:
            raise InvalidResponse(f"not a chat completion: {error}") from None
        return events

    def end(self) -> list[ChatEvent]:
        """For a response without a finish reason."""
        if self.has_ended:
            return []
        self.has_ended = True
        return [Ended("tool_calls" if self._num_calls else "stop", None)]

    def _read_choice(self, choice: Mapping[str, Any]) -> list[ChatEvent]:
        message = choice.get("delta") or choice.get("message") or {}
        events: list[ChatEvent] = []
        if reasoning := message.get("reasoning_content") or message.get("reasoning"):
            events.append(Reasoning(_text(reasoning)))
        if text := _text(message.get("content")) or _text(message.get("refusal")):
            events.append(Content(text))
        for call in message.get("tool_calls") or ():
            events += self._read_call(call)
        if (reason := choice.get("finish_reason")) and isinstance(reason, str) and not self.has_ended:
            self.has_ended = True
            stop = choice.get("stop_reason")
            if reason in ("stop", "function_call") and self._num_calls:
                reason = "tool_calls"
            events.append(Ended(reason, stop if isinstance(stop, str) else None))
        return events

    def _read_call(self, call: Mapping[str, Any]) -> list[ChatEvent]:
        function = call.get("function") or {}
        index, call_id, name = call.get("index"), _text(call.get("id")), _text(function.get("name"))
        events: list[ChatEvent] = []
        if self._is_new(index, call_id, name):
            self._num_calls += 1
            self._call_key = (index, call_id)
            events.append(CallBegun(call_id or f"call_{uuid.uuid4().hex[:24]}", name))
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, str) and arguments:
            events.append(CallArguments(arguments))
        return events

    def _is_new(self, index: Any, call_id: Any, name: Any) -> bool:
        """Whether a fragment begins a call; some engines number all calls 0, and some none."""
        if self._call_key is None:
            return True
        last_index, last_id = self._call_key
        if isinstance(index, int) and isinstance(last_index, int) and index != last_index:
            if index < last_index:
                raise InvalidResponse("its tool calls are interleaved")
            return True
        if call_id:
            return bool(call_id != last_id)
        return bool(name) and index is None


class ChatWriter(ABC):
    """Writes one chat in a dialect whose stream events are objects with a `type`."""

    @abstractmethod
    def start(self, reader: ChatReader) -> list[dict[str, Any]]:
        """The first events."""

    @abstractmethod
    def feed(self, events: Iterable[ChatEvent]) -> list[dict[str, Any]]: ...

    @abstractmethod
    def end(self, usage: ChatUsage) -> list[dict[str, Any]]:
        """The last events of a complete chat."""

    @abstractmethod
    def whole(self, usage: ChatUsage) -> dict[str, Any]:
        """The whole response, instead of `end`."""

    @abstractmethod
    def fail(self, error: Json) -> list[dict[str, Any]]:
        """The last events of a stream that breaks; `error` is the adapter's."""


class ChatStream(StreamTranslator):
    """Translates a stream of chat chunks by a writer."""

    def __init__(self, writer: ChatWriter) -> None:
        self._writer = writer
        self._reader = ChatReader()
        self._has_begun = False

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        events = self._reader.read(chunk)
        return _encode([*self._begin(), *self._writer.feed(events)])

    def end(self) -> bytes:
        written = [*self._begin(), *self._writer.feed(self._reader.end())]
        return _encode([*written, *self._writer.end(self._reader.usage)])

    def may_end(self) -> bool:
        return self._reader.has_ended

    def error(self, body: Json) -> bytes:
        return _encode(self._writer.fail(body))

    def _begin(self) -> list[dict[str, Any]]:
        if self._has_begun:
            return []
        self._has_begun = True
        return self._writer.start(self._reader)


def write_whole(writer: ChatWriter, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A whole response in the writer's dialect."""
    reader = ChatReader()
    events = reader.read(answer)
    if not answer.get("choices"):
        raise InvalidResponse("it has no choices")
    writer.start(reader)
    writer.feed([*events, *reader.end()])
    return writer.whole(reader.usage)


_to_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _encode(events: Iterable[Mapping[str, Any]]) -> bytes:
    """As server-sent events."""
    lines = [f"event: {event['type']}\ndata: {_to_text(event)}\n\n" for event in events]
    return "".join(lines).encode("utf-8", "replace")


def _text(value: Any) -> str:
    """Content or reasoning, as a string or as parts."""
    if isinstance(value, list):
        return "".join(str(part.get("text") or "") for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


def _usage(usage: Mapping[str, Any]) -> ChatUsage:
    if not isinstance(usage, Mapping):
        raise InvalidResponse("its usage is not an object")
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    prompt_tokens = _count(usage.get("prompt_tokens"))
    return ChatUsage(
        prompt_tokens,
        _count(usage.get("completion_tokens")),
        min(_count(cached), prompt_tokens),
        reasoning if isinstance(reasoning, int) else None,
    )


def _detail(usage: Mapping[str, Any], part: str, name: str) -> Any:
    details = usage.get(part)
    return details.get(name) if isinstance(details, Mapping) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
