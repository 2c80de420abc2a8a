"""A chat's output as typed events, shared by all chat protocols.

A ChoiceReader parses a choice's text into reasoning, content and tool calls. Chat completions, responses and
messages only serialize these events, each in its own format.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.core.types import FinishReason
from engine.server.generation.generation import ChoiceDelta
from engine.server.model.reasoning import ReasoningCounter
from engine.text.parsers.events import CallArguments, CallBegun, CallEnded, TextPiece, ToolEvent, ToolParser
from engine.text.parsers.reasoning import OutputKind, ReasoningParser


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    index: int  # of the choice
    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The first delta of a call has its id and name; the arguments of all deltas, joined, are its JSON."""

    index: int
    call_index: int  # among the choice's calls
    call_id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ChoiceEnded:
    index: int
    finish_reason: str  # stop, length or tool_calls
    stop_reason: int | str | None


ChatEvent: TypeAlias = ReasoningDelta | ContentDelta | ToolCallDelta | ChoiceEnded


class ChoiceReader:
    """Turns one choice's deltas into events. Their sum does not depend on how the text was split."""

    def __init__(
        self,
        index: int,
        *,
        reasoning: ReasoningParser | None = None,
        counter: ReasoningCounter | None = None,
        tools: ToolParser | None = None,
        shows_reasoning: bool = True,
        allows_parallel_calls: bool = True,
        echo: str = "",
    ) -> None:
        """`counter` counts reasoning tokens.

        Without `allows_parallel_calls`, calls after the first are dropped. `echo` is the first content.
        """
        self._index = index
        self._reasoning = reasoning
        self._counter = counter
        self._tools = tools
        self._shows_reasoning = shows_reasoning
        self._allows_parallel_calls = allows_parallel_calls
        self._echo = echo
        self._has_called = False

    def read(self, delta: ChoiceDelta) -> list[ChatEvent]:
        """The events of one delta; the last delta yields ChoiceEnded."""
        events: list[ChatEvent] = [ContentDelta(self._index, self._echo)] if self._echo else []
        self._echo = ""
        if self._counter is not None:
            self._counter.feed(delta.token_ids)
            delta.choice.num_reasoning_tokens = self._counter.num_tokens
        if self._reasoning is None:
            events += self._content(delta.text)
        else:
            events += self._pieces(self._reasoning.feed(delta.text))
        if delta.finish_reason is not None:
            events += self._end(delta, delta.finish_reason)
        return events

    def _end(self, delta: ChoiceDelta, reason: FinishReason) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        if self._reasoning is not None:
            events += self._pieces(self._reasoning.finish())
        if self._tools is not None:
            events += self._calls(self._tools.finish())
        has_called = self._has_called and reason is FinishReason.STOP
        return [
            *events,
            ChoiceEnded(self._index, "tool_calls" if has_called else reason.value, delta.stop_reason),
        ]

    def _pieces(self, pieces: Sequence[tuple[OutputKind, str]]) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        for kind, text in pieces:
            if kind is OutputKind.CONTENT:
                events += self._content(text)
            elif self._shows_reasoning:
                events.append(ReasoningDelta(self._index, text))
        return events

    def _content(self, text: str) -> list[ChatEvent]:
        if self._tools is not None:
            return self._calls(self._tools.feed(text))
        return [ContentDelta(self._index, text)] if text else []

    def _calls(self, pieces: Sequence[ToolEvent]) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        for piece in pieces:
            match piece:
                case TextPiece(text):
                    events.append(ContentDelta(self._index, text))
                case CallBegun(number) | CallArguments(number) if number and not self._allows_parallel_calls:
                    pass
                case CallBegun(number, name):
                    self._has_called = True
                    events.append(ToolCallDelta(self._index, number, f"call_{uuid.uuid4().hex}", name, ""))
                case CallArguments(number, fragment):
                    events.append(ToolCallDelta(self._index, number, None, None, fragment))
                case CallEnded():
                    pass
        return events
