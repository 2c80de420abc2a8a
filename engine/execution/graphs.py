"""Decode steps recorded as CUDA graphs: launching a step's hundreds of kernels takes longer than they run.

A graph has fixed shapes and addresses. So one is recorded per number of rows, a batch is filled up to the
next such number with rows that read and store nothing, and its numbers are copied to where the graph reads.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from engine.core.batch import SequenceInput
from engine.models.attention.paged import PagedKVCache
from engine.models.decoder import CausalLM
from engine.models.inputs import flatten
from engine.models.triton_kernels.switches import uses_cuda_graphs

log = logging.getLogger(__name__)

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
_COLUMNS = 8  # per row, at most, beside its blocks

Run = Callable[[], torch.Tensor]


class Record(Protocol):
    """Makes a function that repeats what `run` did, on the same memory, and returns the same tensor."""

    def __call__(self, run: Run) -> Run: ...


class CudaRecord:
    """Graphs that share their memory, as only one is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None  # torch's handle

    def __call__(self, run: Run) -> Run:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # loads kernels and libraries, which a recording can't
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        self._pool = self._pool or graph.pool()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def recorder_for(cache: PagedKVCache) -> Callable[[], Record] | None:
    """None where nothing is recorded: only attention by block table has shapes that don't change."""
    if not cache.has_fixed_shapes or not uses_cuda_graphs(cache.device.type):
        return None
    return CudaRecord


class GraphHolder:
    """The graphs of a model and a cache, for as long as these keep their addresses."""

    def __init__(self, record: Callable[[], Record] | None) -> None:
        """`record` makes what records graphs; None: there are none."""
        self._record = record
        self._graphs: DecodeGraphs | None = None

    def find(self, model: CausalLM, cache: PagedKVCache) -> DecodeGraphs | None:
        if self._graphs is None and self._record is not None:
            self._graphs = DecodeGraphs(model, cache, self._record())
        return self._graphs

    def drop(self) -> None:
        """Steps are recorded again when they are needed."""
        self._graphs = None


class DecodeGraphs:
    """Logits of batches in which each sequence runs one token and samples.

    References the model's and the cache's memory: drop it before they sleep.
    """

    def __init__(self, model: CausalLM, cache: PagedKVCache, record: Record) -> None:
        self._model = model
        self._cache = cache
        self._record = record
        self._can_record = True
        self._max_context = min(model.config.max_position_embeddings, cache.num_blocks * cache.block_size)
        blocks_per_row = -(-self._max_context // cache.block_size) + 1
        num_numbers = _SIZES[-1] * (_COLUMNS + blocks_per_row)
        self._numbers = torch.zeros(num_numbers, dtype=torch.int64, device=model.device)
        self._replays: dict[int, Run] = {}

    def record_all(self, max_rows: int) -> None:
        """Ahead of the first request; the largest first, as the others fit into its memory."""
        for size in reversed(_SIZES[: bisect_left(_SIZES, max_rows) + 1]):
            self._find_replay(size)

    def logits(self, batch: Sequence[SequenceInput]) -> torch.Tensor | None:
        """[S, vocab_size], valid until the next call; None if no graph runs such a batch."""
        num_rows = len(batch)
        if not _is_recorded(batch):
            return None
        size = _SIZES[bisect_left(_SIZES, num_rows)]
        if (replay := self._find_replay(size)) is None:
            return None
        inputs = flatten(batch, self._cache.block_size, pad_to=size)
        self._numbers[: len(inputs.numbers)].copy_(inputs.numbers)
        return replay()[:num_rows]

    def _find_replay(self, size: int) -> Run | None:
        if size not in self._replays and self._can_record:
            try:
                self._replays[size] = self._record(self._step(size))
            except Exception:  # of Triton, CUDA or its memory: steps run without a graph, only slower
                self._can_record = False
                log.warning("Recording steps of %d rows failed; they run unrecorded.", size, exc_info=True)
        return self._replays.get(size)

    def _step(self, size: int) -> Run:
        """A step of `size` rows on this object's memory, which has only rows that fill up meanwhile."""
        filling = flatten((), self._cache.block_size, pad_to=size)
        self._numbers[: len(filling.numbers)].copy_(filling.numbers)
        # What depends on the context is chosen for the longest, as it may come later. All tables can be read.
        inputs = replace(
            filling.on(self._numbers),
            max_context=self._max_context,
            blocks=self._numbers[len(filling.numbers) :],
        )
        model, cache = self._model, self._cache  # not this object: it would keep itself, and them, alive
        return lambda: model.logits(model(inputs, cache))


def _is_recorded(batch: Sequence[SequenceInput]) -> bool:
    return 0 < len(batch) <= _SIZES[-1] and all(
        len(sequence.token_ids) == 1 and sequence.samples and not sequence.num_scored for sequence in batch
    )
