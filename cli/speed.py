"""The speed of a response: its times, and tokens as counted by the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from cli.answers import Part, Piece


class Stopwatch:
    """Starts when it is created."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None
        self._last = self._began
        self._usage: Mapping[str, Any] | None = None

    def watching(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Pass the pieces on unchanged, and note their times."""
        for piece in pieces:
            if piece.usage is not None:
                self._usage = piece.usage
            if piece.part in (Part.CONTENT, Part.REASONING):
                self._last = time.monotonic()
                self._first = self._first or self._last
            yield piece

    def report(self) -> str:
        """One line per figure."""
        total_s = time.monotonic() - self._began
        lines = [("total duration", f"{total_s:.3f} s")]
        if self._first is not None:
            lines.append(("time to first token", f"{self._first - self._began:.3f} s"))
        if self._usage is None:
            lines.append(("tokens", "not reported by the engine"))
        else:
            lines += self._tokens(self._usage)
        return "\n".join(f"{name + ':':<22}{figure}" for name, figure in lines)

    def _tokens(self, usage: Mapping[str, Any]) -> list[tuple[str, str]]:
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        lines = [("prompt tokens", str(prompt)), ("answer tokens", str(completion))]
        took_s = self._last - (self._first or self._last)
        if completion and completion > 1 and took_s > 0:
            lines.append(("answer rate", f"{(completion - 1) / took_s:.1f} tokens/s"))
        return lines
