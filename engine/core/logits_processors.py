"""How a sequence's parameters and its tokens so far change its logits, updated token by token.

Created once per sequence, and only if its parameters change logits; the sampler reads it each step. Work in
proportion to the prompt or to a list of the client's is done at the start, so that a step costs in proportion
to the distinct tokens, and the next token one increment.

Knows nothing of tensors: the arrays here have the layout of tensors and can be read as such.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from engine.core.types import SamplingParams

T = TypeVar("T")

MANY_LISTED = 512  # tokens; for longer lists, processing the whole row is cheaper


class SeenTokens:
    """The distinct tokens of a prompt and the index of each, shared by the sequences of that prompt."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self.token_ids = array("q", dict.fromkeys(prompt_token_ids))  # int64, distinct
        self.index_of = {token: index for index, token in enumerate(self.token_ids)}


class TokenCounts:
    """The distinct tokens that penalties apply to, and how often each occurs in the output."""

    def __init__(self, seen: SeenTokens) -> None:
        """`seen`: counted as seen but not as output; empty if the prompt does not matter."""
        self.token_ids = array("q", seen.token_ids)
        self.num_in_output = array("f", bytes(4 * len(self.token_ids)))  # float32, parallel
        self._index_in_prompt = seen.index_of
        self._index_of: dict[int, int] = {}  # of tokens that are not in the prompt

    def add(self, token_id: int) -> None:
        """Count a token of the output."""
        index = self._index_in_prompt.get(token_id)
        if index is None:
            index = self._index_of.setdefault(token_id, len(self.token_ids))
        if index == len(self.token_ids):
            self.token_ids.append(token_id)
            self.num_in_output.append(0)
        self.num_in_output[index] += 1


class TokenRules:
    """The parameters' rules about single tokens: equal for all choices of a request, and built once."""

    def __init__(self, params: SamplingParams) -> None:
        self.bias_token_ids = array("q", params.logit_bias)
        self.biases = array("f", params.logit_bias.values())
        allowed = params.allowed_token_ids
        self.allowed_token_ids = None if allowed is None else array("q", dict.fromkeys(allowed))
        # Words of one token are forbidden at every step. Longer ones are looked up by the last output tokens:
        # a step costs one look-up for each length of such words, not one for each word.
        single = dict.fromkeys(word[0] for word in params.bad_words if len(word) == 1)
        self.always_forbidden = array("q", single)
        self._completions: dict[int, dict[int, dict[tuple[int, ...], array[int]]]] = {}
        for word in params.bad_words:
            if len(word) > 1:
                by_length = self._completions.setdefault(word[-2], {})
                by_begun = by_length.setdefault(len(word) - 1, {})
                by_begun.setdefault(tuple(word[:-1]), array("q")).append(word[-1])
        # How many of the last output tokens to keep: all but the last of the longest bad word.
        self.num_recent = max((len(word) - 1 for word in params.bad_words), default=0)
        self.applied: Any = None  # cache of engine/execution/sampling/logits_processing.py

    @property
    def num_listed(self) -> int:
        return len(self.bias_token_ids) + len(self.allowed_token_ids or ()) + len(self.always_forbidden)

    def completing(self, recent: tuple[int, ...]) -> array[int]:
        """The tokens that would complete a bad word after `recent`."""
        found = array("q")
        for length, by_begun in self._completions.get(recent[-1], {}).items() if recent else ():
            if length <= len(recent) and (tokens := by_begun.get(recent[-length:])) is not None:
                found += tokens
        return found


class LogitsProcessors:
    """Penalties, biases, allowed tokens and bad words of one sequence."""

    def __init__(self, params: SamplingParams, rules: TokenRules, counts: TokenCounts | None) -> None:
        """`counts`: None without penalties."""
        self.presence_penalty = params.presence_penalty
        self.frequency_penalty = params.frequency_penalty
        self.repetition_penalty = params.repetition_penalty
        self.rules = rules
        self.counts = counts
        self._recent: tuple[int, ...] = ()

    @staticmethod
    def of(params: SamplingParams, prompt_token_ids: Sequence[int]) -> LogitsProcessors | None:
        """None for parameters that don't change logits."""
        return LogitsProcessorFactory().make(params, prompt_token_ids)

    def add(self, token_id: int) -> None:
        """Add the next token of the output."""
        if self.counts is not None:
            self.counts.add(token_id)
        if self.rules.num_recent:
            self._recent = (*self._recent, token_id)[-self.rules.num_recent :]

    def completing_token_ids(self) -> array[int]:
        """The tokens that would complete a bad word of several tokens, int64."""
        return self.rules.completing(self._recent)


class LastResult(Generic[T]):
    """Caches the last result for as long as it is requested for the identical objects.

    The choices of a request come one after the other, with the same prompt and lists. For one thread.
    """

    def __init__(self) -> None:
        self._sources: tuple[Any, ...] = ()
        self._result: T | None = None

    def get(self, make: Callable[[], T], *sources: Any) -> T:
        is_same = len(sources) == len(self._sources) and all(map(operator.is_, sources, self._sources))
        if self._result is None or not is_same:
            self._sources, self._result = sources, make()
        return self._result


class LogitsProcessorFactory:
    """Makes the LogitsProcessors of sequences, and builds once what the choices of a request share."""

    def __init__(self) -> None:
        self._rules: LastResult[TokenRules] = LastResult()
        self._seen: LastResult[SeenTokens] = LastResult()

    def make(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> LogitsProcessors | None:
        """None for parameters that don't change logits."""
        lists = (params.logit_bias or None, params.allowed_token_ids, params.bad_words)
        has_rules = params.logit_bias or params.bad_words or params.allowed_token_ids is not None
        if not has_rules and not _has_penalty(params):
            return None
        counts = None
        if _has_penalty(params):
            seen: Sequence[int] = prompt_token_ids if params.repetition_penalty != 1.0 else ()
            counts = TokenCounts(self._seen.get(lambda: SeenTokens(seen), seen))
        return LogitsProcessors(params, self._rules.get(lambda: TokenRules(params), *lists), counts)


def _has_penalty(params: SamplingParams) -> bool:
    return (
        params.presence_penalty != 0.0 or params.frequency_penalty != 0.0 or params.repetition_penalty != 1.0
    )
