"""Runs a model's own modules that carry a state, such as Mamba's, with the engine's slots as their cache.

Such a module gets all tokens of a step in one row, as every module does. It runs them in groups: the decodes
as a batch of one token each, every chunk of a prompt alone, each with the states of its sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.errors import UnsupportedModel
from engine.models.state.plan import PLANNER, StateGroup
from engine.models.state.spec import StateSpec
from engine.models.transformers_backend.attention import Step
from engine.models.transformers_backend.module_state import ModuleState
from engine.models.transformers_backend.state_probe import StateCall

Tokens = tuple[tuple[Any, ...], dict[str, Any]]  # a call's arguments, with all tokens of a step in one row


@dataclass(frozen=True, slots=True)
class Traits:
    """What a trial has found out about a module."""

    spec: StateSpec
    steps_by_token: bool  # its code continues a text from its state by one token only


class Mixer:
    """In place of a module's forward function."""

    def __init__(self, module: nn.Module, call: StateCall, index: int, step: Step) -> None:
        self._forward: Callable[..., Any] = module.forward
        self.name = type(module).__name__
        self._call = call
        self._index = index  # among the layers that carry a state
        self._step = step
        self.state = ModuleState(call)
        self.steps_by_token = False
        self.examine: Callable[[Mixer, Tokens], None] | None = None  # is given the arguments of each call

    @property
    def traits(self) -> Traits:
        return Traits(self.state.spec, self.steps_by_token)

    @traits.setter
    def traits(self, traits: Traits) -> None:
        self.state.spec, self.steps_by_token = traits.spec, traits.steps_by_token

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tokens, (inputs, cache) = (args, kwargs), (self._step.inputs, self._step.cache)
        if self.examine is not None:
            self.examine(self, tokens)
        if inputs is None or cache is None:  # each token alone, as attention does
            num_tokens = num_tokens_of(tokens)
            return self.run(tokens, StateGroup(slice(0, num_tokens), num_tokens))
        slots = () if cache.states is None else cache.states.of(self._index)
        return joined([self._run_in_slots(tokens, group, slots) for group in inputs.plan(PLANNER, None)])

    def run(
        self,
        tokens: Tokens,
        group: StateGroup,
        parts: Sequence[torch.Tensor] | None = None,
        *,
        continues: bool = False,
    ) -> Any:
        """What the module returns of the group, [1, tokens, …], or several of it.

        `parts`: what its sequences carry, [N, …] each, which is replaced in place; None: nothing, and nobody
        needs it later. What is in it counts only if they `continue`.
        """
        if self.steps_by_token and continues and group.num_sequences == 1:
            rows = range(group.rows.start, group.rows.stop)
            groups = [StateGroup(slice(row, row + 1), 1) for row in rows]
        else:
            groups = [group]
        try:
            cache = None if parts is None else self.state.holding(parts, continues=continues)
            outputs = [self.call(tokens, one, cache) for one in groups]
        finally:
            self.state.release()
        return joined(outputs)

    def call(self, tokens: Tokens, group: StateGroup, cache: object) -> Any:
        num_tokens = num_tokens_of(tokens)
        args = [_part_of(value, num_tokens, group) for value in tokens[0]]
        kwargs = {name: _part_of(value, num_tokens, group) for name, value in tokens[1].items()}
        if isinstance(self._call.cache_argument, int):
            args[self._call.cache_argument] = cache
        else:
            kwargs[self._call.cache_argument] = cache
        return self._in_one_row(self._forward(*args, **kwargs), group)

    def _in_one_row(self, output: Any, group: StateGroup) -> Any:
        if isinstance(output, tuple):
            return tuple(self._in_one_row(one, group) for one in output)
        count = group.rows.stop - group.rows.start
        shape = (1, count) if group.num_sequences == 1 else (count, 1)
        if not isinstance(output, torch.Tensor) or output.shape[:2] != shape:
            raise UnsupportedModel(
                f"{self.name} carries a state and returns something else than a row per token."
            )
        return output if group.num_sequences == 1 else output.transpose(0, 1)

    def _run_in_slots(self, tokens: Tokens, group: StateGroup, slots: Sequence[torch.Tensor]) -> Any:
        if group.writes is None:
            return self.run(tokens, group)
        if group.num_sequences == 1:
            return self._run_in_place(tokens, group, slots)
        if group.reads is None:
            parts = [slot.new_empty((group.num_sequences, *slot.shape[1:])) for slot in slots]
        else:
            parts = [slot.index_select(0, group.reads) for slot in slots]
        output = self.run(tokens, group, parts, continues=group.continues)
        for part, slot in zip(parts, slots, strict=True):
            slot.index_copy_(0, group.writes, part)
        return output

    def _run_in_place(self, tokens: Tokens, group: StateGroup, slots: Sequence[torch.Tensor]) -> torch.Tensor:
        parts = [slot[group.write : group.write + 1] for slot in slots]
        for part, slot in zip(parts, slots, strict=True) if group.continues else ():
            part.copy_(slot[group.read : group.read + 1])
        return self.run(tokens, group, parts, continues=group.continues)


def attach(
    model: PreTrainedModel, calls: Mapping[str, StateCall], step: Step, traits: Sequence[Traits] = ()
) -> list[Mixer]:
    """`traits`: those of the same model; without them, the mixers must be tried before they run."""
    mixers = []
    for index, (name, call) in enumerate(calls.items()):
        module = model.get_submodule(name)
        mixers.append(Mixer(module, call, index, step))
        object.__setattr__(module, "forward", mixers[-1])
        if traits:
            mixers[-1].traits = traits[index]
    return mixers


def joined(outputs: Sequence[Any]) -> Any:
    if len(outputs) == 1:
        return outputs[0]
    if isinstance(outputs[0], tuple):
        return tuple(joined(parts) for parts in zip(*outputs, strict=True))
    return torch.cat(list(outputs), dim=1)


def num_tokens_of(tokens: Tokens) -> int:
    hidden = next(v for v in (*tokens[0], *tokens[1].values()) if isinstance(v, torch.Tensor))
    return hidden.shape[1]


def _part_of(value: Any, num_tokens: int, group: StateGroup) -> Any:
    """The group's tokens of an argument: [1, tokens, …], or [sequences, 1, …]."""
    if isinstance(value, tuple | list):
        return type(value)(_part_of(one, num_tokens, group) for one in value)
    if not isinstance(value, torch.Tensor) or value.shape[:2] != (1, num_tokens):
        return value
    part = value[:, group.rows]
    return part if group.num_sequences == 1 else part.transpose(0, 1)
