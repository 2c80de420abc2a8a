"""What a tool parser finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Tool: TypeAlias = Mapping[str, Any]
"""As in OpenAI's requests: {"type": "function", "function": {name, description, parameters}}."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Not part of a call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    index: int  # among the output's calls
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A fragment of the arguments' JSON; joined, a call's fragments are the whole."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    index: int


ToolEvent: TypeAlias = TextPiece | CallBegun | CallArguments | CallEnded


class ToolParser(Protocol):
    """Takes one output apart, piece by piece."""

    def feed(self, text: str) -> list[ToolEvent]: ...

    def finish(self) -> list[ToolEvent]:
        """What was held back. A call that isn't whole ends here; what never became one is text."""
        ...
