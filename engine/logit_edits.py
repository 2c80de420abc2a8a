"""What a sequence's parameters and its tokens so far change of its logits, kept up to date token by token.

Made once per sequence, and only for those that ask for something; the sampler reads it each step. What takes
time in proportion to the prompt or to a list of the client's is done at the start, so that a step costs what
is distinct, and the next token one increment.

Knows nothing of tensors: the arrays here are laid out so that they can be read as such.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from engine.types import SamplingParams


class TokenCounts:
    """The distinct tokens that penalties apply to, and how often each stands in the output."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        """`prompt_token_ids`: counted as seen but not as output; empty where the prompt is of no matter."""
        self.token_ids = array("q", dict.fromkeys(prompt_token_ids))  # int64, distinct
        self.num_in_output = array("f", bytes(4 * len(self.token_ids)))  # float32, parallel
        self._index_of = {token: index for index, token in enumerate(self.token_ids)}

    def add(self, token_id: int) -> None:
        """Count a token of the output."""
        index = self._index_of.setdefault(token_id, len(self.token_ids))
        if index == len(self.token_ids):
            self.token_ids.append(token_id)
            self.num_in_output.append(0)
        self.num_in_output[index] += 1


class LogitEdits:
    """Penalties, biases, allowed tokens and bad words of one sequence."""

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self.presence_penalty = params.presence_penalty
        self.frequency_penalty = params.frequency_penalty
        self.repetition_penalty = params.repetition_penalty
        self.bias_token_ids = array("q", params.logit_bias)
        self.biases = array("f", params.logit_bias.values())
        allowed = params.allowed_token_ids
        self.allowed_token_ids = None if allowed is None else array("q", dict.fromkeys(allowed))
        self.counts: TokenCounts | None = None
        if _has_penalty(params):
            self.counts = TokenCounts(prompt_token_ids if params.repetition_penalty != 1.0 else ())
        # Words of one token are forbidden at every step. Of the others a step looks only at those whose last
        # token but one was just said: thousands of words must not be walked per sequence and step.
        self._always_forbidden = array(
            "q", dict.fromkeys(word[0] for word in params.bad_words if len(word) == 1)
        )
        self._words_after: dict[int, list[tuple[int, ...]]] = {}
        for word in params.bad_words:
            if len(word) > 1:
                self._words_after.setdefault(word[-2], []).append(word)
        # The last tokens of the output, as many as a bad word has before its own last one.
        self._num_recent = max((len(word) - 1 for word in params.bad_words), default=0)
        self._recent: tuple[int, ...] = ()

    @staticmethod
    def of(params: SamplingParams, prompt_token_ids: Sequence[int]) -> LogitEdits | None:
        """None for parameters that change no logits."""
        asks = (
            _has_penalty(params)
            or params.logit_bias
            or params.bad_words
            or params.allowed_token_ids is not None
        )
        return LogitEdits(params, prompt_token_ids) if asks else None

    def add(self, token_id: int) -> None:
        """Take note of the next token of the output."""
        if self.counts is not None:
            self.counts.add(token_id)
        if self._num_recent:
            self._recent = (*self._recent, token_id)[-self._num_recent :]

    def forbidden_token_ids(self) -> array[int]:
        """The tokens that would complete a bad word now, int64."""
        begun = self._words_after.get(self._recent[-1], ()) if self._recent else ()
        completing = [word[-1] for word in begun if _ends_with(self._recent, word[:-1])]
        return self._always_forbidden + array("q", completing) if completing else self._always_forbidden


def _has_penalty(params: SamplingParams) -> bool:
    return (
        params.presence_penalty != 0.0 or params.frequency_penalty != 0.0 or params.repetition_penalty != 1.0
    )


def _ends_with(tokens: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return tokens[-len(end) :] == end
