"""The events that a tool parser reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Tool: TypeAlias = Mapping[str, Any]
"""As in OpenAI's requests: {"type": "function", "function": {name, description, parameters}}."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text outside calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    index: int  # among the output's calls
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A fragment of the arguments' JSON; a call's fragments joined are its arguments."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    index: int


ToolEvent: TypeAlias = TextPiece | CallBegun | CallArguments | CallEnded


class ToolParser(Protocol):
    """Splits one output into text and calls, piece by piece."""

    def feed(self, text: str) -> list[ToolEvent]: ...

    def finish(self) -> list[ToolEvent]:
        """The text that was held back. An incomplete call ends here; what never became a call is text."""
        ...
