"""A chat's two ends at a terminal: lines typed, and an answer written as it comes."""

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
    """What is typed: a line, or several between triple quotes. Raises EOFError and KeyboardInterrupt."""
    with suppress(ImportError):  # some Pythons have none
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
    """Writes pieces to a stream as they come. Thoughts are for people: shown dim, and only at a terminal."""

    def __init__(self, out: TextIO, *, word_wrap: bool = True) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._colours = self._is_terminal and "NO_COLOR" not in os.environ
        self._wrap = WordWrap(out, self._columns) if word_wrap and self._is_terminal else None
        self.text = ""  # of the answer so far, without thoughts

    def write(self, pieces: Iterable[Piece]) -> None:
        """Every piece as it comes; whatever ends it, the terminal is left as it was."""
        thinking = False
        try:
            for piece in pieces:
                if piece.part is Part.REASONING and not self._is_terminal:
                    continue
                if piece.part in (Part.REASONING, Part.CONTENT):
                    if thinking is not (piece.part is Part.REASONING):
                        thinking = not thinking
                        self._turn(thinking)
                    self._put(piece)
                elif piece.part is Part.FINISH and piece.text == "length" and self._is_terminal:
                    self._show(" [cut: as many tokens as asked for]")
        finally:
            if self._wrap is not None:
                self._wrap.flush()
            if thinking and self._colours:
                self._out.write(_PLAIN)
            if self._is_terminal or not self.text.endswith("\n"):
                self._out.write("\n")
            self._out.flush()

    def _turn(self, thinking: bool) -> None:
        """Between thoughts and answer; without colours a word tells them apart."""
        if self._wrap is not None:
            self._wrap.flush()
            self._wrap.at_line_start()
        if self._colours:
            self._out.write(_DIM if thinking else f"{_PLAIN}\n\n")
        else:
            self._out.write("(thinking)\n" if thinking else "\n(answer)\n")

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
