"""The tokens of prompts that one step runs, and whose they are.

While several requests are there, each has at most its share in a first round; what nobody took goes, in
a second one, to whoever is first. So a short prompt needn't wait for the end of a long one, and nothing is
left unused.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.fair_share import share_of
from engine.core.sequence import Group, SequenceState
from engine.core.types import ALL_LOGPROBS

# Logprobs of prompts that a step tells, alternatives included: it makes an object of each, and its other
# sequences wait for that: some 10 ms.
MAX_STEP_LOGPROBS = 2048


class PromptBudget:
    """Of one step."""

    def __init__(self, num_tokens: int, vocab_size: int, *, is_contended: bool) -> None:
        self.num_left = num_tokens
        self._is_contended = is_contended
        self._vocab_size = vocab_size
        self._most_each = num_tokens  # of one request, in this round
        self._told_left = 1.0  # of what may be told
        self._taken: dict[Group, int] = {}
        self._given: dict[SequenceState, int] = {}

    def rounds(self) -> Iterator[None]:
        whole = self._most_each
        if self._is_contended:
            self._most_each = share_of(whole)
        yield
        if self.num_left and self._most_each < whole and self._most_each in self._taken.values():
            self._most_each = whole
            yield

    def offer(self, sequence: SequenceState) -> int:
        """How many tokens it would be given; not all that are left while logprobs of its prompt are told."""
        wanted = most = self._most_tokens(sequence)
        if sequence.num_unscored:
            wanted = int(self._told_left * most + 1e-6)
        given, left = self._given.get(sequence, 0), self._most_each - self._taken.get(sequence.group, 0)
        return max(0, min(wanted, most - given, left, self.num_left))

    def give(self, sequence: SequenceState) -> None:
        num_tokens = self.offer(sequence)
        if sequence.num_unscored:
            self._told_left -= num_tokens / self._most_tokens(sequence)
        self.num_left -= num_tokens
        self._taken[sequence.group] = self._taken.get(sequence.group, 0) + num_tokens
        self._given[sequence] = self._given.get(sequence, 0) + num_tokens

    def given(self) -> list[tuple[SequenceState, int]]:
        return [(sequence, num_tokens) for sequence, num_tokens in self._given.items() if num_tokens]

    def _most_tokens(self, sequence: SequenceState) -> int:
        """How many tokens it may run in one step: fewer while logprobs of its prompt are to be told."""
        if not sequence.num_unscored:
            return sequence.num_remaining
        num_top = sequence.request.params.prompt_logprobs or 0
        per_token = 1 + (self._vocab_size if num_top == ALL_LOGPROBS else num_top)
        return min(sequence.num_remaining, max(1, MAX_STEP_LOGPROBS // per_token))
