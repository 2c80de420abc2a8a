"""How much of the engine one API request may use while others need it too.

A request may be many sequences: prompts times `n`, beams, a batch of conversations. Pure rules over counts:
knows no clock and no blocks. Nothing is limited while there is only one request.

Slots (running sequences): a request takes more slots than its share only while it is alone. It later gives
these surplus slots back, from the sequence due last, one for each sequence of another request that is ready
to run. As a share is at least one slot, the first sequence of a request never has to stop.

Due times: the later prompts of a request are delayed by a fixed time per token of its own earlier prompts.
So a small request need not wait for all of a large one; the delay is bounded, and less than a level of
priority is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from engine.core.sequence import SequenceGroup, SequenceState
from engine.core.types import EngineRequest

PRIORITY_LEVEL_S = 60.0  # one level of priority is worth this much waiting
_DELAY_PER_TOKEN_S = 0.0005  # per token of the request's own earlier prompts
_MAX_DELAY_S = PRIORITY_LEVEL_S / 2


def fair_share_of(whole: int) -> int:
    """How much of `whole` one request may use while others need some."""
    return max(1, whole * 3 // 4)


class FairShare:
    """The live requests and the slots that each uses."""

    def __init__(self, max_num_seqs: int) -> None:
        self._share = fair_share_of(max_num_seqs)
        self._groups: dict[str, SequenceGroup] = {}
        self._over_share: SequenceGroup | None = None  # the one that uses surplus slots, if any

    @property
    def is_contended(self) -> bool:
        return len(self._groups) > 1

    def add(self, request: EngineRequest) -> tuple[SequenceGroup, float]:
        """Count one more waiting sequence. Returns its group and when it is due."""
        name = request.group or request.request_id
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = SequenceGroup(name)
        delay = min(group.num_prompt_tokens * _DELAY_PER_TOKEN_S, _MAX_DELAY_S)
        group.num_waiting += 1
        group.num_prompt_tokens += len(request.prompt_token_ids)
        return group, request.arrival_time + request.priority * PRIORITY_LEVEL_S + delay

    def remove(self, sequence: SequenceState, *, is_running: bool) -> None:
        group = sequence.group
        if is_running:
            self.mark_waiting(group)
        group.num_waiting -= 1
        group.num_prompt_tokens -= len(sequence.request.prompt_token_ids)
        if not group.num_waiting and not group.num_running:
            del self._groups[group.name]

    def mark_running(self, group: SequenceGroup) -> None:
        """One of its waiting sequences now runs."""
        group.num_waiting -= 1
        group.num_running += 1
        if group.num_running > self._share:
            self._over_share = group

    def mark_waiting(self, group: SequenceGroup) -> None:
        """One of its running sequences now waits."""
        group.num_waiting += 1
        group.num_running -= 1
        if group is self._over_share and group.num_running <= self._share:
            self._over_share = None

    def may_take_slot(self, group: SequenceGroup) -> bool:
        return group.num_running < self._share or not self.is_contended

    @property
    def has_surplus_slot(self) -> bool:
        """Whether a request must give back a slot to another that can use it."""
        return self._over_share is not None and self.is_contended

    def surplus_sequence(self, running: Sequence[SequenceState]) -> SequenceState:
        """The sequence to preempt for a surplus slot. `running`: by priority key."""
        return next(sequence for sequence in reversed(running) if sequence.group is self._over_share)

    def check_integrity(self, running: Iterable[SequenceState], waiting: Iterable[SequenceState]) -> None:
        """Raise RuntimeError if the counts are wrong."""
        counted = {name: (group.num_running, group.num_waiting) for name, group in self._groups.items()}
        actual: dict[str, tuple[int, int]] = {}
        for is_running, sequences in ((1, running), (0, waiting)):
            for sequence in sequences:
                num_running, num_waiting = actual.get(sequence.group.name, (0, 0))
                actual[sequence.group.name] = num_running + is_running, num_waiting + 1 - is_running
        if counted != actual:
            raise RuntimeError(f"Running and waiting sequences by request are {actual}, not {counted}.")


def eligible(
    waiting: Sequence[SequenceState], may_start: Callable[[SequenceState], bool]
) -> Iterator[SequenceState]:
    """The sequences that may start, by priority key; the caller may remove them from `waiting` meanwhile.

    A sequence that may not start holds back the rest of its request, which asks for the same, but no other
    request. Ends early once only such sequences are left, of which there may be thousands.
    """
    held_back: set[SequenceGroup] = set()
    num_held_back = 0
    for sequence in tuple(waiting):
        if sequence.group in held_back:
            continue
        if may_start(sequence):
            yield sequence
            continue
        held_back.add(sequence.group)
        num_held_back += sequence.group.num_waiting
        if num_held_back == len(waiting):
            return
