"""How a step's tokens are divided for layers that carry a state: decodes together, each chunk alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch

from engine.models.inputs import StepInputs


@dataclass(frozen=True, slots=True)
class StateGroup:
    """N sequences that run one token each, or one that runs a chunk. All of them begin, or all continue."""

    rows: slice  # of the step's tokens
    num_sequences: int
    reads: torch.Tensor | None = None  # [N], slots; None if the sequences begin
    writes: torch.Tensor | None = None  # [N], slots; None where no later step needs the states
    read: int = 0  # the slots of a group of one
    write: int = 0

    @property
    def continues(self) -> bool:
        return self.reads is not None


class StatePlanner:
    """Makes the groups of a step, once for all layers: `inputs.plan(PLANNER, None)`."""

    def plan(self, inputs: StepInputs, window: int | None) -> tuple[StateGroup, ...]:
        first_rows: list[int] = inputs.host.first_rows.tolist()
        begins: list[bool] = (inputs.host.contexts == inputs.host.first_rows.diff()).tolist()
        groups: list[StateGroup] = []
        for is_new, run in groupby(range(inputs.num_decodes), key=begins.__getitem__):
            indices = list(run)
            groups.append(_group(inputs, indices[0], indices[-1] + 1, first_rows, is_new))
        for index in range(inputs.num_decodes, inputs.num_sequences):
            groups.append(_group(inputs, index, index + 1, first_rows, begins[index]))
        return tuple(groups)


PLANNER = StatePlanner()


def _group(inputs: StepInputs, first: int, stop: int, first_rows: list[int], is_new: bool) -> StateGroup:
    """Of sequences `first` … `stop` - 1."""
    rows, slots, host = slice(first_rows[first], first_rows[stop]), inputs.state_slots, inputs.host.state_slots
    if slots is None or host is None:
        if not is_new:
            raise ValueError("A sequence continues, but the step has no state slots.")
        return StateGroup(rows, stop - first)
    first_write = inputs.num_sequences + first
    return StateGroup(
        rows,
        stop - first,
        reads=None if is_new else slots[first:stop],
        writes=slots[first_write : first_write + stop - first],
        read=int(host[first]),
        write=int(host[first_write]),
    )
