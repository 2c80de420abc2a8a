"""Input and output of a chat at a terminal: typed lines, and responses written as they arrive."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from cli.answers import Part, Piece
from cli.tables import printable
from cli.wrap import WordWrap

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_FENCE = '"""'
_USUAL_COLUMNS = 80


def read_message() -> str:
    """A typed message: one line, or several between triple quotes. Raises EOFError and KeyboardInterrupt."""
    with suppress(ImportError):  # missing in some Pythons
        import readline  # noqa: F401  # gives `input` editing and history

    line = input(">>> ").strip()
    if not line.startswith(_FENCE):
        return line
    rest = line.removeprefix(_FENCE)
    lines = list[str]()
    while not rest.rstrip().endswith(_FENCE):
        lines.append(rest)
        rest = input("... ")
    lines.append(rest.rstrip().removesuffix(_FENCE))
    return "\n".join(lines).strip("\n")


class AnswerWriter:
    """Writes pieces to a stream as they arrive. Reasoning is shown dim, and only at a terminal."""

    def __init__(self, out: TextIO, *, word_wrap: bool = True) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._colours = self._is_terminal and "NO_COLOR" not in os.environ
        self._wrap = WordWrap(out, self._columns) if word_wrap and self._is_terminal else None
        self.text = ""  # of the response so far, without reasoning

    def write(self, pieces: Iterable[Piece]) -> None:
        """Write every piece as it arrives; restores the terminal's style in any case."""
        is_reasoning = False
        try:
            for piece in pieces:
                if piece.part is Part.REASONING and not self._is_terminal:
                    continue
                if piece.part in (Part.REASONING, Part.CONTENT):
                    if is_reasoning is not (piece.part is Part.REASONING):
                        is_reasoning = not is_reasoning
                        self._switch(is_reasoning)
                    self._put(piece)
                elif piece.part is Part.FINISH and piece.text == "length" and self._is_terminal:
                    self._show(" [cut off at the maximum number of tokens]")
        finally:
            if self._wrap is not None:
                self._wrap.flush()
            if is_reasoning and self._colours:
                self._out.write(_PLAIN)
            if self._is_terminal or not self.text.endswith("\n"):
                self._out.write("\n")
            self._out.flush()

    def _switch(self, is_reasoning: bool) -> None:
        """Separate reasoning and response; without colours by a word."""
        if self._wrap is not None:
            self._wrap.flush()
            self._wrap.at_line_start()
        if self._colours:
            self._out.write(_DIM if is_reasoning else f"{_PLAIN}\n\n")
        else:
            self._out.write("(reasoning)\n" if is_reasoning else "\n(response)\n")

    def _put(self, piece: Piece) -> None:
        if piece.part is Part.CONTENT:
            self.text += piece.text
        self._show(printable(piece.text.replace("\r", "")) if self._is_terminal else piece.text)

    def _show(self, text: str) -> None:
        (self._wrap or self._out).write(text)
        self._out.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or _USUAL_COLUMNS
        except (OSError, ValueError):
            return _USUAL_COLUMNS
