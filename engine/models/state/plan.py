"""How a step's tokens are divided for layers that carry a state: all decodes at once, each chunk alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.models.inputs import StepInputs


@dataclass(frozen=True, slots=True)
class StateGroup:
    """N sequences that run one token each, or one that runs a chunk."""

    rows: slice  # of the step's tokens
    num_sequences: int
    reads: torch.Tensor | None = None  # [N], slots; None if all sequences begin
    writes: torch.Tensor | None = None  # [N], slots; None where no later step needs the states
    read: int = 0  # the slots of a group of one
    write: int = 0
    begins: torch.Tensor | None = None  # [N], which of several sequences begin; None if none does


class StatePlanner:
    """Makes the groups of a step, once for all layers: `inputs.plan(PLANNER, None)`."""

    def plan(self, inputs: StepInputs, window: int | None) -> tuple[StateGroup, ...]:
        first_rows: list[int] = inputs.host.first_rows.tolist()
        lengths = inputs.host.first_rows.diff()
        begins: list[bool] = (inputs.host.contexts == lengths).tolist()
        num_decodes, groups = inputs.num_decodes, []
        if num_decodes:
            groups.append(_group(inputs, 0, num_decodes, slice(0, num_decodes), begins))
        for index in range(num_decodes, inputs.num_sequences):
            rows = slice(first_rows[index], first_rows[index + 1])
            groups.append(_group(inputs, index, index + 1, rows, begins))
        return tuple(groups)


PLANNER = StatePlanner()


def _group(inputs: StepInputs, first: int, stop: int, rows: slice, begins: list[bool]) -> StateGroup:
    """Of sequences `first` … `stop` - 1."""
    count, slots, new = stop - first, inputs.state_slots, begins[first:stop]
    if slots is None:
        if not all(new):
            raise ValueError("A sequence continues, but the step has no state slots.")
        return StateGroup(rows, count)
    host, size = inputs.host.state_slots, inputs.num_sequences
    read, write = (int(host[first]), int(host[size + first])) if host is not None else (0, 0)
    mixed = torch.tensor(new, device=slots.device) if any(new) and not all(new) else None
    reads = None if all(new) else slots[first:stop]
    return StateGroup(rows, count, reads, slots[size + first : size + stop], read, write, mixed)
