"""The reasoning state at the end of a prompt, for models that reason before they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.server.model.served_model import ServedModel
from engine.structured import ReasoningDelimiters
from engine.text.parsers.reasoning import ReasoningFormat, ReasoningParser


class ReasoningState(StrEnum):
    OPEN = "open"  # the prompt ends inside reasoning, which the model continues
    POSSIBLE = "possible"  # the model may start reasoning
    CLOSED = "closed"  # the prompt has closed or disabled reasoning: the answer follows


@dataclass(frozen=True, slots=True)
class PromptReasoning:
    """The reasoning state of one prompt."""

    format: ReasoningFormat
    state: ReasoningState
    start_token_ids: tuple[int, ...]
    end_token_ids: tuple[int, ...]

    @staticmethod
    def of(model: ServedModel, prompt: str) -> PromptReasoning | None:
        """None for a model without a reasoning parser."""
        form = model.reasoning_format
        if form is None:
            return None
        encode = model.tokenizer.encode
        return PromptReasoning(
            form,
            _state_after(prompt, form.start, form.end),
            tuple(encode(form.start, add_special_tokens=False)),
            tuple(encode(form.end, add_special_tokens=False)),
        )

    def disabled(self) -> PromptReasoning:
        """The same prompt with reasoning disabled."""
        return replace(self, state=ReasoningState.CLOSED)

    def make_parser(self) -> ReasoningParser:
        inside = None if self.state is ReasoningState.POSSIBLE else self.state is ReasoningState.OPEN
        return ReasoningParser(self.format, inside=inside)

    @property
    def is_open(self) -> bool:
        """Whether the output starts inside reasoning. For some models it always does, whatever the prompt."""
        if self.state is ReasoningState.POSSIBLE:
            return self.make_parser().is_inside
        return self.state is ReasoningState.OPEN

    @property
    def delimiters(self) -> ReasoningDelimiters | None:
        """For a constraint, which must allow reasoning first; None if the prompt has closed it."""
        if self.state is ReasoningState.CLOSED:
            return None
        return ReasoningDelimiters(self.start_token_ids, self.end_token_ids, is_open=self.is_open)

    def make_counter(self) -> ReasoningCounter:
        return ReasoningCounter(self.start_token_ids, self.end_token_ids, is_open=self.is_open)


class ReasoningCounter:
    """Counts the reasoning tokens of one output, without delimiters, however they are split into steps."""

    def __init__(self, start: Sequence[int], end: Sequence[int], *, is_open: bool) -> None:
        self._start, self._end = list(start), list(end)
        self._is_inside = is_open
        self._is_over = False
        self._recent: list[int] = []  # tokens that could be the start of the next delimiter
        self.num_tokens = 0

    def feed(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if self._is_over:
                return
            self._feed_token(token_id)

    def _feed_token(self, token_id: int) -> None:
        delimiter = self._end if self._is_inside else self._start
        self._recent = [*self._recent, token_id][-len(delimiter) :]
        self.num_tokens += self._is_inside
        if self._recent == delimiter:
            self._is_over = self._is_inside
            self.num_tokens -= len(delimiter) if self._is_over else 0
            self._is_inside, self._recent = True, []


def _state_after(prompt: str, start: str, end: str) -> ReasoningState:
    rest = prompt.rstrip()
    if rest.endswith(start):
        return ReasoningState.OPEN
    return ReasoningState.CLOSED if rest.endswith(end) else ReasoningState.POSSIBLE
