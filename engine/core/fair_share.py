"""How much of the engine one API request may have while others want it, too.

A request may be many sequences: prompts times `n`, beams, a batch of conversations. Pure rules over counts:
knows no clock and no blocks. Where nobody else is there, nothing here limits anything.

Seats (running sequences): beyond its share, a request takes some only while it is alone. What it then has too
much it gives back, the last in rank first, one for each of another's that is ready to sit there. As a share
is at least one seat, the first in rank of a request never has to go.

Turns: what a request has added after its first prompt is due later, by a fixed time for each token of its
own prompts before. So a small request needn't wait for all of a large one, but never for ever, and for less
than what a level of priority is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from engine.core.sequence import Group, SequenceState
from engine.core.types import EngineRequest

PRIORITY_LEVEL_S = 60.0  # of waiting that one level of priority is worth
_DELAY_PER_TOKEN_S = 0.0005  # of its request's own prompts ahead of it
_MAX_DELAY_S = PRIORITY_LEVEL_S / 2


def share_of(whole: int) -> int:
    """What one request may have of `whole` while others want some."""
    return max(1, whole * 3 // 4)


class FairShare:
    """The requests that are there, and the seats that each has."""

    def __init__(self, max_num_seqs: int) -> None:
        self._share = share_of(max_num_seqs)
        self._groups: dict[str, Group] = {}
        self._greedy: Group | None = None  # has more than its share; two don't fit

    @property
    def is_contended(self) -> bool:
        return len(self._groups) > 1

    def join(self, request: EngineRequest) -> tuple[Group, float]:
        """Count one more sequence that waits; its request, and when it is due."""
        name = request.group or request.request_id
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(name)
        delay = min(group.num_prompt_tokens * _DELAY_PER_TOKEN_S, _MAX_DELAY_S)
        group.num_waiting += 1
        group.num_prompt_tokens += len(request.prompt_token_ids)
        return group, request.arrival_time + request.priority * PRIORITY_LEVEL_S + delay

    def leave(self, sequence: SequenceState, *, is_running: bool) -> None:
        """Forget a sequence."""
        group = sequence.group
        if is_running:
            self.stand(group)
        group.num_waiting -= 1
        group.num_prompt_tokens -= len(sequence.request.prompt_token_ids)
        if not group.num_waiting and not group.num_running:
            del self._groups[group.name]

    def sit(self, group: Group) -> None:
        """One of its sequences that waited runs."""
        group.num_waiting -= 1
        group.num_running += 1
        if group.num_running > self._share:
            self._greedy = group

    def stand(self, group: Group) -> None:
        """One that ran waits again."""
        group.num_waiting += 1
        group.num_running -= 1
        if group is self._greedy and group.num_running <= self._share:
            self._greedy = None

    def may_sit(self, group: Group) -> bool:
        return group.num_running < self._share or not self.is_contended

    @property
    def has_debtor(self) -> bool:
        """Whether there is one who has to give back a seat to another that can use it."""
        return self._greedy is not None and self.is_contended

    def debtor(self, running: Sequence[SequenceState]) -> SequenceState:
        """Who that is. `running`: by rank."""
        return next(sequence for sequence in reversed(running) if sequence.group is self._greedy)

    def check_integrity(self, running: Iterable[SequenceState], waiting: Iterable[SequenceState]) -> None:
        """Raise RuntimeError where the counts are wrong."""
        counted = {name: (group.num_running, group.num_waiting) for name, group in self._groups.items()}
        actual: dict[str, tuple[int, int]] = {}
        for is_running, sequences in ((1, running), (0, waiting)):
            for sequence in sequences:
                num_running, num_waiting = actual.get(sequence.group.name, (0, 0))
                actual[sequence.group.name] = num_running + is_running, num_waiting + 1 - is_running
        if counted != actual:
            raise RuntimeError(f"Sequences that run and wait, by request, are {actual}, not {counted}.")


def in_turn(
    waiting: Sequence[SequenceState], may_go: Callable[[SequenceState], bool]
) -> Iterator[SequenceState]:
    """By rank, those that may go; `waiting` may lose them on the way.

    One that may not stops all of its request's, as they ask for the same, and nobody else's. Ends early where
    only such are left, who may be thousands.
    """
    stopped: set[Group] = set()
    num_stopped = 0
    for sequence in tuple(waiting):
        if sequence.group in stopped:
            continue
        if may_go(sequence):
            yield sequence
            continue
        stopped.add(sequence.group)
        num_stopped += sequence.group.num_waiting
        if num_stopped == len(waiting):
            return
