"""Thoughts: what stands between `<think>` and `</think>`, split from the answer that follows.

Names are vLLM's. With "deepseek_r1", an output of which the prompt says nothing is a thought from the start,
whether the mark was seen or not, as these models leave it out.
"""

from __future__ import annotations

from enum import StrEnum

from engine.text.parsers.delimiters import held_back

START, END = "<think>", "</think>"
REASONING_PARSERS = ("qwen3", "deepseek_r1")


class Kind(StrEnum):
    REASONING = "reasoning"
    CONTENT = "content"


class ReasoningParser:
    """Splits one output. However the text was cut into pieces, what comes out adds up to the same."""

    def __init__(self, name: str, *, inside: bool | None) -> None:
        """`inside`: whether the prompt has opened the thought (True) or closed it; None = neither."""
        self.is_inside = name == "deepseek_r1" if inside is None else inside
        self.has_content = False  # whether the answer has begun: no thought can come any more
        self._held = ""
        self._has_thought = False  # whether something of a thought, or its mark, was seen

    def feed(self, text: str) -> list[tuple[Kind, str]]:
        text = self._held + text
        self._held = ""
        pieces: list[tuple[Kind, str]] = []
        if not self.is_inside and not self.has_content and not self._has_thought:
            text = self._begin(text)
        if self.is_inside:
            text = self._think(text, pieces)
        if not self.is_inside and not self._held:
            self._answer(text, pieces)
        return pieces

    def finish(self) -> list[tuple[Kind, str]]:
        """What was held back and came to nothing."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [(Kind.REASONING if self.is_inside else Kind.CONTENT, held)]

    def _begin(self, text: str) -> str:
        """Whether the output begins with a thought; until that is clear, all is held back."""
        begun = text.lstrip()
        if begun.startswith(START):
            self.is_inside = self._has_thought = True
            return begun[len(START) :]
        if START.startswith(begun):
            self._held = text
            return ""
        self.has_content = True
        return text

    def _think(self, text: str, pieces: list[tuple[Kind, str]]) -> str:
        """The thought's part of `text`; returns what follows its end."""
        if not self._has_thought:  # a template may have opened it, and the model says it again
            if text != START and START.startswith(text):
                self._held = text
                return ""
            text = text.removeprefix(START)
            self._has_thought = True
        before, mark, after = text.partition(END)
        if mark:
            self.is_inside = False
            self._has_thought = True
            if before:
                pieces.append((Kind.REASONING, before))
            return after
        keep = held_back(text, (END,))
        self._held = text[len(text) - keep :]
        if shown := text[: len(text) - keep]:
            pieces.append((Kind.REASONING, shown))
        return ""

    def _answer(self, text: str, pieces: list[tuple[Kind, str]]) -> None:
        if not self.has_content and self._has_thought:
            text = text.lstrip("\n")  # templates put empty lines after a thought
        if text:
            self.has_content = True
            pieces.append((Kind.CONTENT, text))


def reasoning_delimiters(name: str) -> tuple[str, str]:
    """A parser's marks of a thought's beginning and end."""
    if name not in REASONING_PARSERS:
        raise ValueError(f"There is no reasoning parser {name!r}: known are {', '.join(REASONING_PARSERS)}.")
    return START, END


def detect_reasoning_parser(template: str) -> str | None:
    """From a chat template: thoughts that models begin themselves, or that the template opens."""
    if END not in template:
        return None
    return "deepseek_r1" if "<｜Assistant｜>" in template else "qwen3"
