"""Attention of one layer with other tiles and splits than ours, and PyTorch's own on adjacent keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.gpu.kernels import Case, Heads
from benchmarks.gpu.machine import DEVICE, REHEARSES, milliseconds, num_processors
from benchmarks.gpu.table import print_table
from engine.models.attention.spec import AttentionSpec
from engine.models.triton_kernels.attention import Tile, TritonBackend

_HEADS = Heads(4, 2, 32, 16) if REHEARSES else Heads(32, 8, 128, 16)
_DECODES = ((2, 64),) if REHEARSES else ((1, 1024), (1, 32768), (32, 1024), (32, 8192), (256, 1024))
_PREFILLS = (16,) if REHEARSES else (2048, 8192)
_SPLITS = (1, 2, 4, 8, 16, 32, 64)
# rows, keys, warps, stages
_DECODE_TILES = ((16, 32, 2, 3), (16, 64, 2, 3), (16, 64, 4, 2), (16, 64, 4, 4), (16, 128, 4, 2))
_PREFILL_TILES = ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 3), (128, 128, 8, 2))


@dataclass(frozen=True)
class _Variant(TritonBackend):
    tile: Tile | None = None
    splits: int = 0

    def tile_of(self, spec: AttentionSpec, dtype: torch.dtype, *, is_decode: bool) -> Tile:
        return self.tile or super().tile_of(spec, dtype, is_decode=is_decode)

    def num_splits(self, spec: AttentionSpec, num_decodes: int, max_context: int) -> int:
        return self.splits or super().num_splits(spec, num_decodes, max_context)


def main() -> None:
    print_table(("attention", "ms"), _measure())


def _measure() -> Iterator[tuple[str, str]]:
    for streams, context in _DECODES:
        name, case = f"decode, {streams} x {context}", _case([(context - 1, context)] * streams)
        yield f"{name}, PyTorch", _time(_pytorch(streams, 1, context))
        yield f"{name}, ours", _time(lambda: case.run(case.spec(), _variant()))  # noqa: B023
        for tile in _DECODE_TILES:
            yield f"{name}, tile {tile}", _time(lambda: case.run(case.spec(), _variant(tile=Tile(*tile))))  # noqa: B023
        for splits in _SPLITS if streams <= 32 else ():
            yield f"{name}, {splits} splits", _time(lambda: case.run(case.spec(), _variant(splits=splits)))  # noqa: B023
    for rows in _PREFILLS:
        name, case = f"prefill, {rows}", _case([(0, rows)])
        yield f"{name}, PyTorch", _time(_pytorch(1, rows, rows))
        yield f"{name}, ours", _time(lambda: case.run(case.spec(), _variant()))  # noqa: B023
        for tile in _PREFILL_TILES:
            yield f"{name}, tile {tile}", _time(lambda: case.run(case.spec(), _variant(tile=Tile(*tile))))  # noqa: B023


def _case(chunks: list[tuple[int, int]]) -> Case:
    return Case(chunks, _HEADS, torch.bfloat16, poisons=False)


def _variant(*, tile: Tile | None = None, splits: int = 0) -> _Variant:
    return _Variant(_HEADS.block_size, num_processors(), tile=tile, splits=splits)


def _pytorch(streams: int, rows: int, context: int) -> Callable[[], object]:
    queries = torch.randn(streams, _HEADS.queries, rows, _HEADS.dim, device=DEVICE, dtype=torch.bfloat16)
    shape = (2, streams, _HEADS.keys, context, _HEADS.dim)
    keys, values = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    is_causal = rows > 1
    return lambda: F.scaled_dot_product_attention(queries, keys, values, is_causal=is_causal, enable_gqa=True)


def _time(run: Callable[[], object]) -> str:
    """In ms; an error, such as too much shared memory, says what can't run."""
    try:
        return f"{milliseconds(run, repeat=15):.3f}"
    except Exception as error:  # a report of what runs, and how fast
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
