"""Where a prompt leaves a model that may think before it answers, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from engine.parsers.reasoning import ReasoningParser, marks_of
from engine.server.model import ServedModel
from engine.structured import ThinkingMarks


class ThinkingState(StrEnum):
    OPEN = "open"  # the prompt ends within a thought: the model goes on with it
    POSSIBLE = "possible"  # the model may begin one
    OVER = "over"  # the prompt has closed it, or switched it off: what follows is the answer


@dataclass(frozen=True, slots=True)
class Thinking:
    """One prompt's."""

    parser: str  # the reasoning parser's name
    state: ThinkingState
    start_token_ids: tuple[int, ...]
    end_token_ids: tuple[int, ...]

    @staticmethod
    def of(model: ServedModel, prompt: str) -> Thinking | None:
        """None for a model without a reasoning parser."""
        if model.reasoning_parser is None:
            return None
        start, end = marks_of(model.reasoning_parser)
        encode = model.tokenizer.encode
        return Thinking(
            model.reasoning_parser,
            _state_after(prompt, start, end),
            tuple(encode(start, add_special_tokens=False)),
            tuple(encode(end, add_special_tokens=False)),
        )

    def switched_off(self) -> Thinking:
        """The same for a prompt that asks for no thought."""
        return replace(self, state=ThinkingState.OVER)

    def make_parser(self) -> ReasoningParser:
        return ReasoningParser(self.parser, inside=self.state is ThinkingState.OPEN)

    @property
    def marks(self) -> ThinkingMarks | None:
        """For a constraint, which must let a thought pass; None once the prompt has closed it."""
        if self.state is ThinkingState.OVER:
            return None
        is_open = self.state is ThinkingState.OPEN
        return ThinkingMarks(self.start_token_ids, self.end_token_ids, is_open=is_open)

    @property
    def end_token_id(self) -> int | None:
        """The token that ends a thought, where it is one."""
        return self.end_token_ids[0] if len(self.end_token_ids) == 1 else None


def _state_after(prompt: str, start: str, end: str) -> ThinkingState:
    rest = prompt.rstrip()
    if rest.endswith(start):
        return ThinkingState.OPEN
    return ThinkingState.OVER if rest.endswith(end) else ThinkingState.POSSIBLE
