"""Attention over paged keys and values on a GPU: sizes and launches of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.native.kernels import fits_head_dim
from engine.models.triton_kernels.attention_kernels import attend, combine, store
from engine.models.triton_kernels.launch import is_interpreted, padded

_DECODE_ROWS = 16  # queries in a tile: the least for a tensor core
_PROGRAMS_PER_PROCESSOR = 4  # what splitting aims for
_LEAST_SPLIT = 128  # positions that are worth a program of their own
_MAX_SPLITS = 64
_MAX_HEAD_DIM = 256  # beyond it a tile doesn't fit into registers


@dataclass(frozen=True, slots=True)
class Tile:
    """How much a program holds: queries, keys at a time, and the keys' stages on their way from memory."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class _Call:
    """One layer's tensors and the step's sequences."""

    spec: AttentionSpec
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    inputs: StepInputs
    sinks: torch.Tensor | None
    out: torch.Tensor

    @property
    def group(self) -> int:
        return self.spec.num_heads // self.spec.num_kv_heads


@dataclass(frozen=True, slots=True)
class TritonBackend:
    """Implements engine.models.attention.backend.AttentionBackend."""

    block_size: int
    num_processors: int  # of the GPU
    has_fixed_shapes: ClassVar[bool] = True

    def fits(self, spec: AttentionSpec) -> bool:
        return fits_head_dim(spec.head_dim) and spec.head_dim <= _MAX_HEAD_DIM

    def plan(self, inputs: StepInputs, window: int | None) -> None:
        """Nothing: the kernels read the step's arrays."""

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        cached_keys: torch.Tensor,
        cached_values: torch.Tensor,
        inputs: StepInputs,
    ) -> None:
        num_rows, kv_heads, head_dim = keys.shape
        store[(num_rows, kv_heads)](
            keys,
            values,
            cached_keys,
            cached_values,
            inputs.slots,
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            cached_keys.stride(0),
            HEAD_DIM=head_dim,
            PADDED_DIM=padded(head_dim),
            num_warps=1,
        )

    def attend(
        self,
        spec: AttentionSpec,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        inputs: StepInputs,
        plan: None,
        sinks: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        call = _Call(spec, queries, keys, values, inputs, sinks, out)
        if inputs.num_decodes:
            self._decode(call)
        if inputs.num_decodes < inputs.num_sequences:
            tokens = self.tile_of(spec, queries.dtype, is_decode=False).rows // call.group
            num_rows = queries.shape[0] - inputs.num_decodes
            num_prefills = inputs.num_sequences - inputs.num_decodes
            self._launch(call, num_rows // tokens + num_prefills, is_decode=False)

    def num_splits(self, spec: AttentionSpec, num_decodes: int, max_context: int) -> int:
        """How many programs share a decode's context, so that all processors have work."""
        if spec.window is not None:
            max_context = min(max_context, spec.window)
        wanted = -(-self.num_processors * _PROGRAMS_PER_PROCESSOR // (num_decodes * spec.num_kv_heads))
        return max(1, min(wanted, _MAX_SPLITS, max_context // _LEAST_SPLIT))

    def tile_of(self, spec: AttentionSpec, dtype: torch.dtype, *, is_decode: bool) -> Tile:
        """Found by the registers and the shared memory that each takes on a Hopper GPU: none spills much."""
        rows = max(_DECODE_ROWS, padded(spec.num_heads // spec.num_kv_heads))
        is_wide = spec.head_dim > 128
        if dtype is torch.float32:  # has no tensor cores
            return Tile(rows if is_decode else max(rows, 16 if is_wide else 32), 16, 4, 2)
        if is_decode:
            return Tile(rows, 32 if is_wide else 64, 4, 2 if is_wide else 3)
        return Tile(max(rows, 128), 32 if is_wide else 64, 8, 2)

    def _decode(self, call: _Call) -> None:
        spec, num_decodes = call.spec, call.inputs.num_decodes
        splits = self.num_splits(spec, num_decodes, call.inputs.max_context)
        if splits == 1:
            self._launch(call, num_decodes, is_decode=True)
            return
        num_outputs = num_decodes * spec.num_heads
        parts = torch.empty(num_outputs, splits, spec.head_dim, dtype=torch.float32, device=call.out.device)
        weights = torch.empty(num_outputs, splits, dtype=torch.float32, device=call.out.device)
        self._launch(call, num_decodes, is_decode=True, splits=splits, parts=parts, weights=weights)
        combine[(num_outputs,)](
            parts,
            weights,
            call.out,
            splits,
            HEAD_DIM=spec.head_dim,
            PADDED_DIM=padded(spec.head_dim),
            PADDED_SPLITS=padded(splits, least=2),
            num_warps=2,
        )

    def _launch(
        self,
        call: _Call,
        num_tiles: int,
        *,
        is_decode: bool,
        splits: int = 1,
        parts: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        spec, inputs = call.spec, call.inputs
        tile = self.tile_of(spec, call.queries.dtype, is_decode=is_decode)
        attend[(num_tiles, spec.num_kv_heads, splits)](
            call.queries,
            call.keys,
            call.values,
            call.out,
            parts,
            weights,
            call.sinks,
            inputs.blocks,
            inputs.starts,
            inputs.contexts,
            inputs.first_rows,
            inputs.num_decodes,
            inputs.num_sequences,
            spec.scale,
            call.queries.stride(0),
            call.keys.stride(0),
            KV_HEADS=spec.num_kv_heads,
            GROUP=call.group,
            HEAD_DIM=spec.head_dim,
            PADDED_DIM=padded(spec.head_dim),
            BLOCK_SIZE=self.block_size,
            TILE_ROWS=tile.rows,
            TILE_KEYS=tile.keys,
            IS_SPLIT=parts is not None,
            IS_DECODE=is_decode,
            WINDOW=spec.window or 0,
            SOFTCAP=spec.softcap or 0.0,
            HAS_SINKS=call.sinks is not None,
            WIDEN=is_interpreted(),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
