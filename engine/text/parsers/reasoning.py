"""Reasoning: the text between `<think>` and `</think>`, split from the answer that follows.

Names are vLLM's. With "deepseek_r1", an output is reasoning from the start unless the prompt says otherwise,
even without the start delimiter, which these models omit.
"""

from __future__ import annotations

from enum import StrEnum

from engine.text.parsers.delimiters import held_back

START, END = "<think>", "</think>"
REASONING_PARSERS = ("qwen3", "deepseek_r1")


class OutputKind(StrEnum):
    REASONING = "reasoning"
    CONTENT = "content"


class ReasoningParser:
    """Splits one output. The results add up to the same, however the text was cut into pieces."""

    def __init__(self, name: str, *, inside: bool | None) -> None:
        """`inside`: whether the prompt has opened the reasoning (True) or closed it; None = neither."""
        self.is_inside = name == "deepseek_r1" if inside is None else inside
        self.has_content = False  # whether the answer has begun: no reasoning can follow
        self._held = ""
        self._has_reasoning = False  # whether any reasoning, or its delimiter, was seen

    def feed(self, text: str) -> list[tuple[OutputKind, str]]:
        text = self._held + text
        self._held = ""
        pieces: list[tuple[OutputKind, str]] = []
        if not self.is_inside and not self.has_content and not self._has_reasoning:
            text = self._read_start(text)
        if self.is_inside:
            text = self._read_reasoning(text, pieces)
        if not self.is_inside and not self._held:
            self._read_content(text, pieces)
        return pieces

    def finish(self) -> list[tuple[OutputKind, str]]:
        """The text that was held back and did not become a delimiter."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [(OutputKind.REASONING if self.is_inside else OutputKind.CONTENT, held)]

    def _read_start(self, text: str) -> str:
        """Decide whether the output begins with reasoning; until that is clear, hold back all text."""
        begun = text.lstrip()
        if begun.startswith(START):
            self.is_inside = self._has_reasoning = True
            return begun[len(START) :]
        if START.startswith(begun):
            self._held = text
            return ""
        self.has_content = True
        return text

    def _read_reasoning(self, text: str, pieces: list[tuple[OutputKind, str]]) -> str:
        """Read the reasoning in `text`; returns what follows its end."""
        if not self._has_reasoning:  # the model may repeat a delimiter that the template has
            if text != START and START.startswith(text):
                self._held = text
                return ""
            text = text.removeprefix(START)
            self._has_reasoning = True
        before, delimiter, after = text.partition(END)
        if delimiter:
            self.is_inside = False
            self._has_reasoning = True
            if before:
                pieces.append((OutputKind.REASONING, before))
            return after
        keep = held_back(text, (END,))
        self._held = text[len(text) - keep :]
        if shown := text[: len(text) - keep]:
            pieces.append((OutputKind.REASONING, shown))
        return ""

    def _read_content(self, text: str, pieces: list[tuple[OutputKind, str]]) -> None:
        if not self.has_content and self._has_reasoning:
            text = text.lstrip("\n")  # templates put empty lines after reasoning
        if text:
            self.has_content = True
            pieces.append((OutputKind.CONTENT, text))


def reasoning_delimiters(name: str) -> tuple[str, str]:
    """A parser's start and end delimiters."""
    if name not in REASONING_PARSERS:
        raise ValueError(f"There is no reasoning parser {name!r}: known are {', '.join(REASONING_PARSERS)}.")
    return START, END


def detect_reasoning_parser(template: str) -> str | None:
    """Detects the parser for a chat template: the model opens the reasoning itself, or the template does."""
    if END not in template:
        return None
    return "deepseek_r1" if "<｜Assistant｜>" in template else "qwen3"
