"""The prompt tokens that one step runs, and which sequences get them.

While there are several requests, each gets at most its share in a first round; a second round gives the rest
away in order. So a short prompt need not wait for the end of a long one, and no token is left unused.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.fair_share import fair_share_of
from engine.core.sequence import SequenceGroup, SequenceState
from engine.core.types import ALL_LOGPROBS

# Logprobs of prompts in a step, alternatives included: each becomes an object, while the step's other
# sequences wait: some 10 ms.
MAX_STEP_LOGPROBS = 2048


class PromptBudget:
    """The budget of one step."""

    def __init__(self, num_tokens: int, vocab_size: int, *, is_contended: bool) -> None:
        self.num_left = num_tokens
        self._is_contended = is_contended
        self._vocab_size = vocab_size
        self._most_each = num_tokens  # for one request, in this round
        self._logprobs_left = 1.0  # fraction of the step's logprobs
        self._taken: dict[SequenceGroup, int] = {}
        self._given: dict[SequenceState, int] = {}

    def rounds(self) -> Iterator[None]:
        whole = self._most_each
        if self._is_contended:
            self._most_each = fair_share_of(whole)
        yield
        if self.num_left and self._most_each < whole and self._most_each in self._taken.values():
            self._most_each = whole
            yield

    def offer(self, sequence: SequenceState) -> int:
        """How many tokens `give` would give it; fewer than all that are left if its prompt needs logprobs."""
        wanted = most = self._most_tokens(sequence)
        if sequence.num_unscored:
            wanted = int(self._logprobs_left * most + 1e-6)
        given, left = self._given.get(sequence, 0), self._most_each - self._taken.get(sequence.group, 0)
        return max(0, min(wanted, most - given, left, self.num_left))

    def give(self, sequence: SequenceState) -> None:
        num_tokens = self.offer(sequence)
        if sequence.num_unscored:
            self._logprobs_left -= num_tokens / self._most_tokens(sequence)
        self.num_left -= num_tokens
        self._taken[sequence.group] = self._taken.get(sequence.group, 0) + num_tokens
        self._given[sequence] = self._given.get(sequence, 0) + num_tokens

    def take_back(self, sequence: SequenceState) -> None:
        """What it was given, as it doesn't run in this step after all."""
        num_tokens = self._given.pop(sequence, 0)
        if not num_tokens:
            return
        if sequence.num_unscored:
            self._logprobs_left += num_tokens / self._most_tokens(sequence)
        self.num_left += num_tokens
        self._taken[sequence.group] -= num_tokens

    def given(self) -> list[tuple[SequenceState, int]]:
        return [(sequence, num_tokens) for sequence, num_tokens in self._given.items() if num_tokens]

    def _most_tokens(self, sequence: SequenceState) -> int:
        """How many tokens it may run in one step: fewer if its prompt needs logprobs."""
        if not sequence.num_unscored:
            return sequence.num_at_once
        num_top = sequence.request.params.prompt_logprobs or 0
        per_token = 1 + (self._vocab_size if num_top == ALL_LOGPROBS else num_top)
        return min(sequence.num_at_once, max(1, MAX_STEP_LOGPROBS // per_token))
