"""What a sequence's parameters and its tokens so far change of its logits, kept up to date token by token.

Made once per sequence, and only for those that ask for something; the sampler reads it each step. What takes
time in proportion to the prompt or to a list of the client's is done at the start, so that a step costs what
is distinct, and the next token one increment.

Knows nothing of tensors: the arrays here are laid out so that they can be read as such.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from engine.core.types import SamplingParams

T = TypeVar("T")

MANY_LISTED = 512  # tokens: from here on, the whole row is cheaper than each of them


class SeenTokens:
    """The distinct tokens of a prompt, and the place of each: shared by the sequences that begin with it."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self.token_ids = array("q", dict.fromkeys(prompt_token_ids))  # int64, distinct
        self.index_of = {token: index for index, token in enumerate(self.token_ids)}


class TokenCounts:
    """The distinct tokens that penalties apply to, and how often each stands in the output."""

    def __init__(self, seen: SeenTokens) -> None:
        """`seen`: counted as seen but not as output; empty where the prompt is of no matter."""
        self.token_ids = array("q", seen.token_ids)
        self.num_in_output = array("f", bytes(4 * len(self.token_ids)))  # float32, parallel
        self._index_in_prompt = seen.index_of
        self._index_of: dict[int, int] = {}  # of those that the prompt doesn't have

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
    """What parameters say of single tokens: the same for each choice of a request, and made once for all."""

    def __init__(self, params: SamplingParams) -> None:
        self.bias_token_ids = array("q", params.logit_bias)
        self.biases = array("f", params.logit_bias.values())
        allowed = params.allowed_token_ids
        self.allowed_token_ids = None if allowed is None else array("q", dict.fromkeys(allowed))
        # Words of one token are forbidden at every step. The others are found by what was said last: a step
        # costs one look for each length that such words have, not one for each word.
        single = dict.fromkeys(word[0] for word in params.bad_words if len(word) == 1)
        self.always_forbidden = array("q", single)
        self._completions: dict[int, dict[int, dict[tuple[int, ...], array[int]]]] = {}
        for word in params.bad_words:
            if len(word) > 1:
                by_length = self._completions.setdefault(word[-2], {})
                by_begun = by_length.setdefault(len(word) - 1, {})
                by_begun.setdefault(tuple(word[:-1]), array("q")).append(word[-1])
        # The last tokens of the output, as many as a bad word has before its own last one.
        self.num_recent = max((len(word) - 1 for word in params.bad_words), default=0)
        self.applied: Any = None  # kept here by who applies them, between steps

    @property
    def num_listed(self) -> int:
        return len(self.bias_token_ids) + len(self.allowed_token_ids or ()) + len(self.always_forbidden)

    def completing(self, recent: tuple[int, ...]) -> array[int]:
        """The tokens that would complete a bad word after these."""
        found = array("q")
        for length, by_begun in self._completions.get(recent[-1], {}).items() if recent else ():
            if length <= len(recent) and (tokens := by_begun.get(recent[-length:])) is not None:
                found += tokens
        return found


class LogitsProcessors:
    """Penalties, biases, allowed tokens and bad words of one sequence."""

    def __init__(self, params: SamplingParams, rules: TokenRules, counts: TokenCounts | None) -> None:
        """`counts`: None where nothing is penalised."""
        self.presence_penalty = params.presence_penalty
        self.frequency_penalty = params.frequency_penalty
        self.repetition_penalty = params.repetition_penalty
        self.rules = rules
        self.counts = counts
        self._recent: tuple[int, ...] = ()

    @staticmethod
    def of(params: SamplingParams, prompt_token_ids: Sequence[int]) -> LogitsProcessors | None:
        """None for parameters that change no logits."""
        return LogitsProcessorFactory().make(params, prompt_token_ids)

    def add(self, token_id: int) -> None:
        """Take note of the next token of the output."""
        if self.counts is not None:
            self.counts.add(token_id)
        if self.rules.num_recent:
            self._recent = (*self._recent, token_id)[-self.rules.num_recent :]

    def completing_token_ids(self) -> array[int]:
        """The tokens that would complete a bad word of several, int64."""
        return self.rules.completing(self._recent)

    def forbidden_token_ids(self) -> array[int]:
        """The tokens that would complete a bad word now, int64."""
        return self.rules.always_forbidden + self.completing_token_ids()


class Shared(Generic[T]):
    """The last thing made, for as long as it is made of the very same objects.

    The choices of a request come one after the other, with the same prompt and lists. For one thread.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._made: T | None = None

    def get(self, make: Callable[[], T], *of: Any) -> T:
        is_same = len(of) == len(self._of) and all(map(operator.is_, of, self._of))
        if self._made is None or not is_same:
            self._of, self._made = of, make()
        return self._made


class LogitsProcessorFactory:
    """Makes the LogitsProcessors of sequences, what they have in common once."""

    def __init__(self) -> None:
        self._rules: Shared[TokenRules] = Shared()
        self._seen: Shared[SeenTokens] = Shared()

    def make(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> LogitsProcessors | None:
        """None for parameters that change no logits."""
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
