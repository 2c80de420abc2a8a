"""What an engine's last log lines say of its failure, and which of them say nothing. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from instance_manager.types import FailureClass

_Item = TypeVar("_Item")
_Signs = tuple[tuple[FailureClass, str], ...]


@dataclass(frozen=True, slots=True)
class LogPatterns:
    """Regular expressions for single lines, in which case doesn't matter. `|` combines two sets."""

    signs: _Signs = ()  # lines that show the class of a failure
    reasons: _Signs = ()  # lines that also explain it completely, in the group `reason`
    noise: tuple[str, ...] = ()  # lines that explain no exit, and would push its cause out of the tail

    def __or__(self, other: LogPatterns) -> LogPatterns:
        return LogPatterns(
            _both(self.signs, other.signs), _both(self.reasons, other.reasons), _both(self.noise, other.noise)
        )

    def shows(self, failure: FailureClass, line: str) -> bool:
        """Whether a line is a sign of this failure."""
        return any(re.search(sign, line, re.I) for kind, sign in self.signs + self.reasons if kind is failure)

    def reason(self, failure: FailureClass, line: str) -> str | None:
        """A line's complete explanation of this failure; None if it has none."""
        matches: Iterator[re.Match[str]] = filter(
            None, (re.search(sign, line, re.I) for kind, sign in self.reasons if kind is failure)
        )
        return next((match["reason"] for match in matches), None)

    def is_noise(self, line: str) -> bool:
        """Whether a line explains no exit."""
        return any(re.search(pattern, line) for pattern in self.noise)


def _both(first: tuple[_Item, ...], second: tuple[_Item, ...]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys(first + second))


_C = FailureClass

# Messages of the system, and of libraries that most servers are built on.
ANY_SERVER = LogPatterns(
    signs=(
        (_C.PORT_IN_USE, r"address already in use|\bport in use\b|EADDRINUSE|only one usage of each socket"),
        (
            _C.OUT_OF_MEMORY,
            r"out of memory|OutOfMemoryError|cannot allocate memory|can't allocate memory|std::bad_alloc"
            r"|\bMemoryError\b",
        ),
        (
            _C.MODEL_NOT_FOUND,
            r"model[_ ]not[_ ]found|RepositoryNotFound|LocalEntryNotFound|is not a valid model identifier"
            r"|not appear to have a file named config\.json|no such file or directory: .*config\.json"
            r"|no config\.json|OfflineModeIsEnabled|HFValidationError"
            r"|invalid repository ID or local directory",
        ),
        (
            _C.BAD_ARGUMENTS,
            r"error: unrecognized arguments|error: argument |error: the following arguments are required"
            r"|validation errors? for \w+(Config|Args|Settings)\b",
        ),
        (_C.UNSUPPORTED_MODEL, r"Transformers does not recognize this architecture"),
    ),
    noise=(
        # What programs print on exit whatever the cause.
        r"^nanobind: | - (leaked (instance|type|function) |\.\.\. skipped remainder)"
        r"|^See https://nanobind|^\s*For further information visit https://errors\.pydantic"
        r"|^INFO: +(Shutting down|Waiting for application shutdown\.|Application shutdown complete\."
        r"|Finished server process )",
        # Access lines: clients retry.
        r'- "[A-Z]+ \S+ HTTP/[\d.]+" \d{3}',
    ),
)
