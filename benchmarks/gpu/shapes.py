"""Models of real shapes whose random weights are made on the device: no checkpoint is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from benchmarks.gpu.machine import DEVICE, REHEARSES
from engine.core.batch import Batch, ScheduledSequence, SequenceInput
from engine.core.types import SamplingParams
from engine.execution.graphs import recorder_for
from engine.execution.runner import ModelRunner
from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec, bytes_per_token
from engine.models.decoder import CausalLM
from engine.models.decoder_config import DecoderConfig
from engine.models.layers.weights import WeightedLayer
from engine.models.qwen3 import Qwen3ForCausalLM
from engine.models.rope_config import RopeConfig
from engine.models.tensor_source import ALL
from engine.models.weights import expected_tensors, load_weights

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """Of a Qwen3 model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    is_tied: bool
    vocabulary: int = 151936
    kv_heads: int = 8
    head_dim: int = 128

    def config(self) -> DecoderConfig:
        attention = AttentionSpec(
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
        )
        return DecoderConfig(
            architecture="Qwen3ForCausalLM",
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            attention_specs=(attention,) * self.layers,
            rms_norm_eps=1e-6,
            ropes=(RopeConfig(theta=1e6),) * self.layers,
            max_position_embeddings=40960,
            tie_word_embeddings=self.is_tied,
            qkv_bias=False,
            o_bias=False,
            mlp_bias=False,
            dtype="bfloat16",
            eos_token_ids=(),
        )


_REAL = {
    "0.6B": Shape(hidden=1024, intermediate=3072, layers=28, heads=16, is_tied=True),
    "8B": Shape(hidden=4096, intermediate=12288, layers=36, heads=32, is_tied=False),
}
_TINY = Shape(
    hidden=64, intermediate=96, layers=2, heads=4, is_tied=True, vocabulary=300, kv_heads=2, head_dim=32
)
SHAPES = {"tiny": _TINY} if REHEARSES else _REAL
STREAMS = (1, 4) if REHEARSES else (1, 8, 32, 256)
CONTEXT = 64 if REHEARSES else 1024
PREFILL = 32 if REHEARSES else 2048


@torch.inference_mode()
def make_model(shape: Shape) -> CausalLM:
    """The same weights every time."""
    config = shape.config()
    model = Qwen3ForCausalLM(config, dtype=torch.bfloat16, device=DEVICE)
    torch.manual_seed(0)
    load_weights(model, _RandomSource(expected_tensors(model, _RandomSource({}))))
    return model


class _RandomSource:
    """Its tensors are made on the device."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self.names = frozenset(shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        made = _random(self._shapes[name])
        return made if rows == columns == ALL else made[rows, columns]


def _random(size: tuple[int, ...]) -> torch.Tensor:
    """Scales of norms are around 1, matrices small enough to keep activations in range."""
    noise = torch.randn(size, dtype=torch.bfloat16, device=DEVICE)
    return 1 + 0.1 * noise if len(size) == 1 else noise * size[-1] ** -0.5


def make_runner(
    model: CausalLM, *, num_blocks: int, load: Callable[[], CausalLM] | None = None
) -> ModelRunner:
    cache = PagedKVCache(
        model.attention_specs,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        dtype=model.dtype,
        device=DEVICE,
    )
    for tensor in cache.tensors():
        tensor.normal_()
    return ModelRunner(model, cache, eos_token_ids=(), load=load, record=recorder_for(cache))


def decodes(num_streams: int, context: int) -> Batch:
    """One token of each stream, greedy, the newest of `context` positions."""
    per_stream = -(-context // BLOCK_SIZE)
    return Batch(
        tuple(
            _sequence(index, [index + 1], context - 1, range(index * per_stream, (index + 1) * per_stream))
            for index in range(num_streams)
        )
    )


def prefill(num_tokens: int, *, start: int = 0) -> Batch:
    """A chunk of one prompt, after `start` positions that are in the cache."""
    tokens = [token % 256 for token in range(num_tokens)]
    return Batch((_sequence(0, tokens, start, range(-(-(start + num_tokens) // BLOCK_SIZE))),))


def _sequence(index: int, tokens: list[int], start: int, blocks: range) -> ScheduledSequence:
    return ScheduledSequence(
        SequenceInput(tokens, start, blocks, samples=True),
        str(index),
        SamplingParams(max_tokens=1 << 20, temperature=0.0),
    )


def bytes_of_step(model: CausalLM, num_streams: int, context: int) -> int:
    """What a decode step must read: all matrices once, and each stream's keys and values."""
    config = model.config
    matrices: Iterator[WeightedLayer] = (
        m for m in model.model.layers.modules() if isinstance(m, WeightedLayer)
    )
    sizes = [size for m in matrices for sizes in m.part_shapes().values() for size in sizes]
    weights = sum(torch.Size(size).numel() for size in sizes) + config.vocab_size * config.hidden_size
    cached = num_streams * context * bytes_per_token(model.attention_specs, model.dtype.itemsize)
    return weights * model.dtype.itemsize + cached
