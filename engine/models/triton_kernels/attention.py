"""Attention over paged keys and values on a GPU: sizes and launches of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from engine.models.inputs import BlockReader, PagedSequences
from engine.models.triton_kernels.attention_kernels import attend, combine
from engine.models.triton_kernels.launch import is_interpreted, padded
from engine.models.triton_kernels.layers import TritonOperators

_DECODE_ROWS = 16  # queries in a tile: the least for a tensor core
_PROGRAMS_PER_PROCESSOR = 4  # what splitting aims for
_LEAST_SPLIT = 128  # positions that are worth a program of their own
_MAX_SPLITS = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """How much a program holds: queries, keys at a time, and the keys' stages on their way from memory."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """Implements engine.models.attention.block_kernels.BlockKernels."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    num_processors: int  # of the GPU
    window: int = 0  # positions that a query sees, its own included; 0 = all
    softcap: float = 0.0  # bounds the scores; 0 = none
    operators: ClassVar[TritonOperators] = TritonOperators()
    reader: ClassVar[BlockReader] = BlockReader.ALL

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        paged: PagedSequences,
        out: torch.Tensor,
    ) -> None:
        if paged.num_decodes:
            self._decode(queries, keys, values, paged, out)
        if paged.num_decodes < paged.num_sequences:
            tokens = self.tile_of(queries.dtype, is_decode=False).rows // self._group
            num_rows = queries.shape[0] - paged.num_decodes
            num_prefills = paged.num_sequences - paged.num_decodes
            self._launch(
                num_rows // tokens + num_prefills, queries, keys, values, paged, out, is_decode=False
            )

    def num_splits(self, num_decodes: int, max_context: int) -> int:
        """How many programs share a decode's context, so that all processors have work."""
        wanted = -(-self.num_processors * _PROGRAMS_PER_PROCESSOR // (num_decodes * self.num_kv_heads))
        return max(1, min(wanted, _MAX_SPLITS, max_context // _LEAST_SPLIT))

    @property
    def _group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def tile_of(self, dtype: torch.dtype, *, is_decode: bool) -> Tile:
        """Found by the registers and the shared memory that each takes on a Hopper GPU: none spills much."""
        rows = max(_DECODE_ROWS, padded(self._group))
        is_wide = self.head_dim > 128
        if dtype is torch.float32:  # has no tensor cores
            return Tile(rows if is_decode else max(rows, 16 if is_wide else 32), 16, 4, 2)
        if is_decode:
            return Tile(rows, 32 if is_wide else 64, 4, 2 if is_wide else 3)
        return Tile(max(rows, 128), 32 if is_wide else 64, 8, 2)

    def _decode(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        paged: PagedSequences,
        out: torch.Tensor,
    ) -> None:
        splits = self.num_splits(paged.num_decodes, paged.max_context)
        if splits == 1:
            self._launch(paged.num_decodes, queries, keys, values, paged, out, is_decode=True)
            return
        num_outputs = paged.num_decodes * self.num_heads
        parts = torch.empty(num_outputs, splits, self.head_dim, dtype=torch.float32, device=out.device)
        weights = torch.empty(num_outputs, splits, dtype=torch.float32, device=out.device)
        self._launch(
            paged.num_decodes,
            queries,
            keys,
            values,
            paged,
            out,
            is_decode=True,
            splits=splits,
            parts=parts,
            weights=weights,
        )
        combine[(num_outputs,)](
            parts,
            weights,
            out,
            splits,
            HEAD_DIM=self.head_dim,
            PADDED_DIM=padded(self.head_dim),
            PADDED_SPLITS=padded(splits, least=2),
            num_warps=2,
        )

    def _launch(
        self,
        num_tiles: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        paged: PagedSequences,
        out: torch.Tensor,
        *,
        is_decode: bool,
        splits: int = 1,
        parts: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        tile = self.tile_of(queries.dtype, is_decode=is_decode)
        attend[(num_tiles, self.num_kv_heads, splits)](
            queries,
            keys,
            values,
            out,
            parts,
            weights,
            paged.blocks,
            paged.starts,
            paged.contexts,
            paged.first_rows,
            paged.num_decodes,
            paged.num_sequences,
            self.head_dim**-0.5,
            queries.stride(0),
            keys.stride(0),
            KV_HEADS=self.num_kv_heads,
            GROUP=self._group,
            HEAD_DIM=self.head_dim,
            PADDED_DIM=padded(self.head_dim),
            BLOCK_SIZE=self.block_size,
            TILE_ROWS=tile.rows,
            TILE_KEYS=tile.keys,
            IS_SPLIT=parts is not None,
            IS_DECODE=is_decode,
            WINDOW=self.window,
            SOFTCAP=self.softcap,
            WIDEN=is_interpreted(),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
