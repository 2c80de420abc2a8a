"""Runs batches: tensors, model, logits, tokens. The engine's only door to the device.

Knows nothing of requests' lives, of text or of HTTP; it is called from one thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.attention.paged import PagedKVCache
from engine.inputs import build_inputs
from engine.models.decoder import CausalLM
from engine.sampling.sampler import SampledRow, Sampler
from engine.types import Batch, SamplingParams, ScheduledSequence


class ModelRunner:
    """The Runner of engine.types, on PyTorch."""

    def __init__(self, model: CausalLM, cache: PagedKVCache, *, eos_token_ids: Sequence[int]) -> None:
        self._model = model
        self._cache = cache
        self._sampler = Sampler(eos_token_ids)
        self.num_blocks = cache.num_blocks
        self.block_size = cache.block_size

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Sequence[int | None]:
        """Run one step; return, per sequence of the batch, the sampled token or None where none is due."""
        logits = self.logits(batch)
        if logits is None:
            return [None] * len(batch.sequences)
        rows = [SampledRow(s.params, s.output_position) for s in batch.sequences if s.samples]
        tokens = iter(self._sampler.sample(logits, rows))
        return [next(tokens) if sequence.samples else None for sequence in batch.sequences]

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor | None:
        """Run the model; the logits of the sequences that sample [S, vocab_size], None if there is none."""
        inputs = build_inputs(
            batch, self.block_size, self._model.device, paged_decodes=self._cache.kernels is not None
        )
        hidden = self._model(inputs, self._cache)
        return self._model.logits(hidden) if inputs.num_sampled else None

    def warm_up(self, num_tokens: int) -> None:
        """A prefill of `num_tokens` and one decode, so that the first request doesn't pay for first times.

        Writes to blocks that hold nothing yet; to be called before the first `execute`.
        """
        params = SamplingParams(max_tokens=1, temperature=0.0)
        for token_ids, start in (([0] * num_tokens, 0), ([0], num_tokens - 1)):
            sequence = ScheduledSequence(
                request_id="warm-up",
                token_ids=token_ids,
                start=start,
                block_ids=range(-(-num_tokens // self.block_size)),
                samples=True,
                output_position=0,
                params=params,
            )
            self.execute(Batch((sequence,)))
