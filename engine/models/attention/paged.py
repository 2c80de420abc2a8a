"""The paged KV cache, with what stores and attends on its device.

Layout: per layer one tensor for keys and one for values, [1, kv_heads, slots, head_dim], where a slot is
block * block_size + offset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.models.attention.backend import choose_backends
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.operators import Operators, find_operators
from engine.models.state.cache import StateCache
from engine.models.state.spec import StateSpec


class PagedKVCache:
    """The keys and values of all layers. Memory is reserved, and used only as blocks are written.

    How its device stores and attends is chosen once, here.
    """

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        *,
        num_blocks: int,
        window_blocks: Mapping[int, int] | None = None,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        shares_memory: bool = False,
        state_specs: Sequence[StateSpec] = (),
        num_state_slots: int = 0,
    ) -> None:
        """`window_blocks`: by window, of layers that have so many blocks of their own (engine/core/batch.py).

        `shares_memory`: layers of one size write to the same memory, each before it reads; for whole
        sequences only, whose keys and values no later step needs.

        `num_state_slots`: of layers that carry a state (engine/core/state_slots.py); 0 for whole sequences.
        """
        self.specs = tuple(specs)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        self.window_blocks = dict(window_blocks or {})
        self.num_state_slots = num_state_slots
        self.states = (
            StateCache(state_specs, num_slots=num_state_slots, device=device) if num_state_slots else None
        )
        counts = [num_blocks, *self.window_blocks.values()]
        groups = {window: group for group, window in enumerate(self.window_blocks, 1)}
        self._group_of = [0 if spec.window is None else groups.get(spec.window, 0) for spec in specs]
        sizes = [
            (1, spec.num_kv_heads, counts[group] * block_size, spec.head_dim)
            for spec, group in zip(specs, self._group_of, strict=True)
        ]
        # Not zeroed: unwritten slots are never read, and on a CPU use no memory.
        if shares_memory:
            shared = {
                size: [torch.empty(size, dtype=dtype, device=device) for _ in range(2)] for size in set(sizes)
            }
            self.keys, self.values = ([shared[size][part] for size in sizes] for part in (0, 1))
        else:
            self.keys, self.values = (
                [torch.empty(size, dtype=dtype, device=device) for size in sizes] for _ in range(2)
            )
        self._backends = choose_backends(specs, block_size=block_size, dtype=dtype, device=device)
        self.operators: Operators = find_operators(device.type, dtype)

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether decode steps can be recorded, to be replayed with other numbers."""
        if self.window_blocks or self.states is not None:
            return False
        return all(backend.has_fixed_shapes for backend in self._backends)

    def tensors(self) -> list[torch.Tensor]:
        states = [] if self.states is None else self.states.tensors()
        return [*self.keys, *self.values, *states]

    def inputs_of(self, layer: int, inputs: StepInputs) -> StepInputs:
        """A step's inputs with the block tables and slots of this layer's group."""
        group = self._group_of[layer]
        return inputs.windows[group - 1] if group else inputs

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor, inputs: StepInputs) -> None:
        """Write the step's keys and values, both [T, kv_heads, head_dim]."""
        inputs = self.inputs_of(layer, inputs)
        self._backends[layer].store(keys, values, self.keys[layer][0], self.values[layer][0], inputs)

    def attend(
        self, layer: int, queries: torch.Tensor, inputs: StepInputs, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend each query to its sequence up to its own position; the step's keys and values are stored.

        queries [T, heads, head_dim], sinks [heads] if the layer's spec has them → [T, heads * head_dim].
        """
        spec, backend = self.specs[layer], self._backends[layer]
        if spec.has_sinks != (sinks is not None):
            raise ValueError(f"Layer {layer}: sinks must be given exactly where the attention spec has them.")
        out = queries.new_empty(queries.shape[0], spec.num_heads * spec.head_dim)
        inputs = self.inputs_of(layer, inputs)
        plan: Any = inputs.plan(backend, spec.window)
        sinks = None if sinks is None else sinks.float()
        backend.attend(spec, queries, self.keys[layer][0], self.values[layer][0], inputs, plan, sinks, out)
        return out
