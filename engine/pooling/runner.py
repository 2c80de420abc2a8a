"""Runs batches of whole sequences: tensors, model, pooling, activation. Called from one thread."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from engine.core.batch import SequenceInput
from engine.core.sleep import MemoryUsage, Part
from engine.execution.residency import ModelResidency
from engine.models.attention.flat import EqualLengths, FlatInputs, runs_of
from engine.models.attention.paged import PagedKVCache
from engine.models.attention.whole import WholeSequences
from engine.models.encoder_layers import EncoderModel
from engine.models.inputs import build_inputs
from engine.models.layers.head import Head
from engine.models.pooled_decoder import PooledDecoder
from engine.models.pooling_type import PoolingType
from engine.pooling.classifier import Activation
from engine.pooling.plan import PoolingPlan
from engine.pooling.types import PoolingRequest

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.NORMALIZE: lambda x: F.normalize(x, dim=-1),
    Activation.IDENTITY: lambda x: x,
    Activation.SIGMOID: torch.sigmoid,
    Activation.SOFTMAX: lambda x: x.softmax(dim=-1),
    Activation.TANH: torch.tanh,
}


class Pools(Protocol):
    """A model and how it pools."""

    def modules(self) -> Iterator[nn.Module]:
        """The modules with weights."""
        ...

    def cache_maker(self) -> Callable[[], PagedKVCache | None]:
        """A function that makes the cache for `pool`, or None if it needs none, without keeping the model."""
        ...

    def pool(
        self, batch: Sequence[PoolingRequest], pooling: PoolingType, cache: PagedKVCache | None
    ) -> torch.Tensor:
        """One vector per sequence: [S, hidden]."""
        ...

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → logits, float32 [S, num_labels]."""
        ...


@dataclass(frozen=True, slots=True)
class Projection:
    """A sentence-transformers Dense module."""

    head: Head
    has_tanh: bool

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.head(vectors)
        return torch.tanh(projected) if self.has_tanh else projected


@dataclass(frozen=True, slots=True)
class Pooler:
    """A model, and the projections applied to a pooled vector in order."""

    pools: Pools
    projections: Sequence[Projection] = ()

    def modules(self) -> Iterator[nn.Module]:
        yield from self.pools.modules()
        for projection in self.projections:
            yield projection.head


class PoolingModelRunner:
    """Implements PoolingRunner of engine/pooling/types.py with PyTorch."""

    def __init__(self, load: Callable[[], Pooler], plan: PoolingPlan, device: torch.device) -> None:
        """`load` makes the model now, and again after a sleep at level 2."""
        pooler = load()
        make_cache = pooler.pools.cache_maker()
        self._residency: ModelResidency[Pooler, PagedKVCache | None] = ModelResidency(
            pooler, make_cache(), device=device, load=load, make_cache=make_cache
        )
        self._plan = plan
        self._activate = _ACTIVATIONS[plan.activation]

    @torch.inference_mode()
    def run(self, batch: Sequence[PoolingRequest]) -> list[array[float]]:
        """The values of each request, in order. Equal lengths should be neighbours.

        Raises ArithmeticError if the model's numbers overflow (float16 may): JSON can't represent them.
        """
        pooler = self._residency.model
        vectors = pooler.pools.pool(batch, self._plan.pooling, self._residency.cache).float()
        classifier = self._plan.classifier
        if classifier is not None:
            vectors = (pooler.pools.classify(vectors) - classifier.logit_mean) / classifier.logit_sigma
        for projection in pooler.projections:
            vectors = projection.apply(vectors)
        if not bool(vectors.isfinite().all()):
            raise ArithmeticError("the model's output is not finite")
        return [array("f", values) for values in self._finish(vectors, batch)]

    def sleep(self, level: int) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        self._residency.sleep(level)

    def wake_up(self, parts: Set[Part]) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        self._residency.wake_up(parts)

    @property
    def memory(self) -> MemoryUsage:
        return self._residency.memory

    def _finish(self, vectors: torch.Tensor, batch: Sequence[PoolingRequest]) -> list[list[float]]:
        """Truncate and activate as each request specifies; in one operation if all are alike."""
        first = batch[0]
        options = {(request.dimensions, request.use_activation) for request in batch}
        if len(options) == 1:
            return self._shape(vectors, first).tolist()
        pairs = zip(vectors, batch, strict=True)
        return [self._shape(vector, request).tolist() for vector, request in pairs]

    def _shape(self, vectors: torch.Tensor, request: PoolingRequest) -> torch.Tensor:
        vectors = vectors[..., : request.dimensions]  # Matryoshka embeddings are normalised after truncation
        return self._activate(vectors) if request.use_activation else vectors


class PooledEncoderRunner:
    """An encoder on flat tokens."""

    def __init__(self, model: EncoderModel) -> None:
        self._model = model

    def modules(self) -> Iterator[nn.Module]:
        return self._model.modules()

    def cache_maker(self) -> Callable[[], None]:
        return lambda: None

    def pool(
        self, batch: Sequence[PoolingRequest], pooling: PoolingType, cache: PagedKVCache | None
    ) -> torch.Tensor:
        inputs = flat_inputs(batch, self._model.device)
        return _pool_rows(self._model(inputs), inputs.runs, pooling)

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        return self._model.classify(pooled)


class PooledDecoderRunner:
    """A decoder. Its keys and values are needed only while a layer runs."""

    def __init__(
        self,
        model: PooledDecoder,
        *,
        max_tokens: int,
        max_sequences: int,
        block_size: int,
        looks_both_ways: bool = False,
    ) -> None:
        """`max_tokens`, `max_sequences`: of the largest batch."""
        self._model = model
        self._block_size = block_size
        # The last block of each sequence may be half empty.
        self._num_blocks = max_tokens // block_size + max_sequences
        self._looks_both_ways = looks_both_ways

    def modules(self) -> Iterator[nn.Module]:
        return self._model.modules()

    def cache_maker(self) -> Callable[[], PagedKVCache]:
        """Makes a KV cache of one layer, shared by all: each writes and reads it before the next does."""
        model = self._model
        if self._looks_both_ways:
            return partial(
                WholeSequences,
                model.attention_specs,
                num_tokens=self._num_blocks,
                dtype=model.dtype,
                device=model.device,
            )
        return partial(
            PagedKVCache,
            model.attention_specs,
            num_blocks=self._num_blocks,
            block_size=self._block_size,
            dtype=model.dtype,
            device=model.device,
            shares_memory=True,
        )

    def pool(
        self, batch: Sequence[PoolingRequest], pooling: PoolingType, cache: PagedKVCache | None
    ) -> torch.Tensor:
        inputs = build_inputs(self._as_prefills(batch), self._block_size, self._model.device)
        if pooling is PoolingType.LAST:
            return self._model(inputs, cache)  # type: ignore[no-any-return]
        rows = self._model(replace(inputs, sampled_rows=None), cache)
        return _pool_rows(rows, runs_of([len(request.token_ids) for request in batch]), pooling)

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        return self._model.classify(pooled)

    def _as_prefills(self, batch: Sequence[PoolingRequest]) -> list[SequenceInput]:
        """Blocks are assigned anew for every batch."""
        sequences = []
        first_block = 0
        for request in batch:
            num_blocks = -(-len(request.token_ids) // self._block_size)
            blocks = range(first_block, first_block + num_blocks)
            sequences.append(SequenceInput(request.token_ids, 0, blocks, samples=True))
            first_block += num_blocks
        return sequences


def flat_inputs(batch: Sequence[PoolingRequest], device: torch.device) -> FlatInputs:
    """The batch's tokens end to end, in one copy to the device."""
    token_ids: list[int] = []
    positions: list[int] = []
    type_ids: list[int] = []
    for request in batch:
        length = len(request.token_ids)
        token_ids.extend(request.token_ids)
        positions.extend(range(length))
        type_ids.extend([0] * length if request.type_ids is None else request.type_ids)
    flat = torch.tensor([token_ids, positions, type_ids], dtype=torch.int64).to(device)
    return FlatInputs(flat[0], flat[1], flat[2], runs_of([len(request.token_ids) for request in batch]))


def _pool_rows(rows: torch.Tensor, runs: Sequence[EqualLengths], pooling: PoolingType) -> torch.Tensor:
    """[T, hidden] → [S, hidden]. A mean is taken in float32."""
    pooled = []
    for run in runs:
        sequences = rows[run.rows].view(run.count, run.length, -1)
        if pooling is PoolingType.MEAN:
            pooled.append(sequences.mean(dim=1, dtype=torch.float32))
        else:
            pooled.append(sequences[:, 0 if pooling is PoolingType.CLS else -1])
    return torch.cat(pooled)
