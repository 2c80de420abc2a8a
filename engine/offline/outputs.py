"""What a call returns, with vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from engine.core.types import PositionLogprobs
from engine.server.generation.generation import Choice, ChoiceDelta
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float
    rank: int | None = None  # 1 = the most likely
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One continuation of a prompt."""

    index: int
    text: str
    token_ids: list[int]  # with the token that ended it
    cumulative_logprob: float | None  # None unless logprobs were requested
    logprobs: list[dict[int, Logprob]] | None  # by position, then by token id
    finish_reason: str | None
    stop_reason: int | str | None = None  # the stop token or stop string that ended it

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its continuations."""

    request_id: str
    prompt: str | None  # None if it was given as token ids
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None  # the first token has none
    outputs: list[CompletionOutput]
    finished: bool = True
    num_cached_tokens: int = 0  # of the prompt

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Of the prompt, and of all continuations."""
        return len(self.prompt_token_ids), sum(len(output.token_ids) for output in self.outputs)

    def __getitem__(self, name: str) -> Any:
        """`output["text"]` and `output["token_ids"]` of the first continuation, as nano-vllm has it."""
        if name not in ("text", "token_ids"):
            raise KeyError(name)
        return getattr(self.outputs[0], name)


OutputT = TypeVar("OutputT")


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput(Generic[OutputT]):
    """An input of a pooling model and its values."""

    request_id: str
    outputs: OutputT
    prompt_token_ids: list[int]
    finished: bool = True


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    data: list[float]


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    score: float


EmbeddingRequestOutput = PoolingRequestOutput[EmbeddingOutput]
ClassificationRequestOutput = PoolingRequestOutput[ClassificationOutput]
ScoringRequestOutput = PoolingRequestOutput[ScoringOutput]


class OutputMaker:
    """Makes outputs of a model; remembers the texts of tokens, as likely ones occur again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def completion(self, choice: Choice, whole: ChoiceDelta, *, has_text: bool) -> CompletionOutput:
        """`whole`: all deltas of the choice, merged."""
        wants_logprobs = choice.request.params.logprobs is not None
        chosen = [position.chosen.logprob for position in whole.logprobs]
        return CompletionOutput(
            index=choice.index,
            text=whole.text if has_text else "",
            token_ids=list(whole.token_ids),
            cumulative_logprob=sum(chosen) if wants_logprobs else None,
            logprobs=[self._position(each) for each in whole.logprobs] if wants_logprobs else None,
            finish_reason=None if whole.finish_reason is None else whole.finish_reason.value,
            stop_reason=whole.stop_reason,
        )

    def prompt_logprobs(
        self, positions: Sequence[PositionLogprobs | None] | None
    ) -> list[dict[int, Logprob] | None] | None:
        if positions is None:
            return None
        return [None if position is None else self._position(position) for position in positions]

    def _position(self, position: PositionLogprobs) -> dict[int, Logprob]:
        return {
            token.token_id: Logprob(token.logprob, token.rank, self._text(token.token_id))
            for token in (position.chosen, *position.top)
        }

    def _text(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text
