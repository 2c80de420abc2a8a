"""Attention on a CPU: our kernel for decodes, PyTorch's operators for prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from engine.models.attention.sdpa import SdpaBackend, SequenceSpan
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.native.kernels import Kernels, fits_head_dim


@dataclass(frozen=True, slots=True)
class NativeBackend:
    """Implements engine.models.attention.backend.AttentionBackend."""

    reference: SdpaBackend
    kernels: Kernels
    has_fixed_shapes: ClassVar[bool] = False

    def fits(self, spec: AttentionSpec) -> bool:
        return fits_head_dim(spec.head_dim)

    def plan(self, inputs: StepInputs, window: int | None) -> list[SequenceSpan]:
        """The sequences after the decodes."""
        return self.reference.plan(inputs, window, first=inputs.num_decodes)

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        cached_keys: torch.Tensor,
        cached_values: torch.Tensor,
        inputs: StepInputs,
    ) -> None:
        self.reference.store(keys, values, cached_keys, cached_values, inputs)

    def attend(
        self,
        spec: AttentionSpec,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        inputs: StepInputs,
        plan: list[SequenceSpan],
        sinks: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        if inputs.num_decodes:
            self.kernels.decode_attention(
                queries[: inputs.num_decodes],
                keys,
                values,
                inputs.blocks,
                inputs.starts,
                inputs.contexts,
                spec,
                sinks=sinks,
                block_size=self.reference.block_size,
                out=out,
            )
        self.reference.attend(spec, queries, keys, values, inputs, plan, sinks, out)
