"""Where a prompt leaves a model that may think before it answers, and what follows from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.server.model.served_model import ServedModel
from engine.structured import ThinkingMarks
from engine.text.parsers.reasoning import ReasoningParser, marks_of


class ReasoningState(StrEnum):
    OPEN = "open"  # the prompt ends within a thought: the model goes on with it
    POSSIBLE = "possible"  # the model may begin one
    OVER = "over"  # the prompt has closed it, or switched it off: what follows is the answer


@dataclass(frozen=True, slots=True)
class PromptReasoning:
    """One prompt's."""

    parser: str  # the reasoning parser's name
    state: ReasoningState
    start_token_ids: tuple[int, ...]
    end_token_ids: tuple[int, ...]

    @staticmethod
    def of(model: ServedModel, prompt: str) -> PromptReasoning | None:
        """None for a model without a reasoning parser."""
        if model.reasoning_parser is None:
            return None
        start, end = marks_of(model.reasoning_parser)
        encode = model.tokenizer.encode
        return PromptReasoning(
            model.reasoning_parser,
            _state_after(prompt, start, end),
            tuple(encode(start, add_special_tokens=False)),
            tuple(encode(end, add_special_tokens=False)),
        )

    def switched_off(self) -> PromptReasoning:
        """The same for a prompt that asks for no thought."""
        return replace(self, state=ReasoningState.OVER)

    def make_parser(self) -> ReasoningParser:
        inside = None if self.state is ReasoningState.POSSIBLE else self.state is ReasoningState.OPEN
        return ReasoningParser(self.parser, inside=inside)

    @property
    def is_open(self) -> bool:
        """Whether the output begins within a thought. Some models' always does, whatever the prompt shows."""
        if self.state is ReasoningState.POSSIBLE:
            return self.make_parser().is_inside
        return self.state is ReasoningState.OPEN

    @property
    def marks(self) -> ThinkingMarks | None:
        """For a constraint, which must let a thought pass; None once the prompt has closed it."""
        if self.state is ReasoningState.OVER:
            return None
        return ThinkingMarks(self.start_token_ids, self.end_token_ids, is_open=self.is_open)

    def make_counter(self) -> ReasoningCounter:
        return ReasoningCounter(self.start_token_ids, self.end_token_ids, is_open=self.is_open)


class ReasoningCounter:
    """Counts the tokens of one output's thought, its marks left out, however they come in steps."""

    def __init__(self, start: Sequence[int], end: Sequence[int], *, is_open: bool) -> None:
        self._start, self._end = list(start), list(end)
        self._is_inside = is_open
        self._is_over = False
        self._recent: list[int] = []  # tokens since the last mark, as far as the next one may need them
        self.num_tokens = 0

    def take(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if self._is_over:
                return
            self._take(token_id)

    def _take(self, token_id: int) -> None:
        mark = self._end if self._is_inside else self._start
        self._recent = [*self._recent, token_id][-len(mark) :]
        self.num_tokens += self._is_inside
        if self._recent == mark:
            self._is_over = self._is_inside
            self.num_tokens -= len(mark) if self._is_over else 0
            self._is_inside, self._recent = True, []


def _state_after(prompt: str, start: str, end: str) -> ReasoningState:
    rest = prompt.rstrip()
    if rest.endswith(start):
        return ReasoningState.OPEN
    return ReasoningState.OVER if rest.endswith(end) else ReasoningState.POSSIBLE
