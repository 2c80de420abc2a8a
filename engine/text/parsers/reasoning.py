"""Reasoning: the text between two delimiters, split from the answer that follows.

A new format is one description here, and its name in REASONING_FORMATS.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.text.parsers.choice import NamedFormat
from engine.text.parsers.delimiters import held_back

START, END = "<think>", "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat(NamedFormat):
    starts_inside: bool = False  # an output is reasoning from the start, unless the prompt has closed it
    start: str = START
    end: str = END


class OutputKind(StrEnum):
    REASONING = "reasoning"
    CONTENT = "content"


class ReasoningParser:
    """Splits one output. The results add up to the same, however the text was cut into pieces."""

    def __init__(self, form: ReasoningFormat, *, inside: bool | None) -> None:
        """`inside`: whether the prompt has opened the reasoning (True) or closed it; None = neither."""
        self._start, self._end = form.start, form.end
        self.is_inside = form.starts_inside if inside is None else inside
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
        if begun.startswith(self._start):
            self.is_inside = self._has_reasoning = True
            return begun[len(self._start) :]
        if self._start.startswith(begun):
            self._held = text
            return ""
        self.has_content = True
        return text

    def _read_reasoning(self, text: str, pieces: list[tuple[OutputKind, str]]) -> str:
        """Read the reasoning in `text`; returns what follows its end."""
        if not self._has_reasoning:  # the model may repeat a delimiter that the template has
            if text != self._start and self._start.startswith(text):
                self._held = text
                return ""
            text = text.removeprefix(self._start)
            self._has_reasoning = True
        before, delimiter, after = text.partition(self._end)
        if delimiter:
            self.is_inside = False
            self._has_reasoning = True
            if before:
                pieces.append((OutputKind.REASONING, before))
            return after
        keep = held_back(text, (self._end,))
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


DEEPSEEK_R1 = ReasoningFormat(
    names=("deepseek_r1",),
    matches_template=lambda template: END in template and "<｜Assistant｜>" in template,
    starts_inside=True,  # these models omit the start delimiter
)
QWEN3 = ReasoningFormat(names=("qwen3",), matches_template=lambda template: END in template)

REASONING_FORMATS: tuple[ReasoningFormat, ...] = (DEEPSEEK_R1, QWEN3)
"""In the order in which a chat template is compared with them: its first match is the model's format."""
