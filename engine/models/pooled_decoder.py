"""A decoder without its language head, for embeddings and classifiers: Qwen3-Embedding, Qwen3-Reranker, …"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.decoder import CausalLM, make_ropes
from engine.models.decoder_config import DecoderConfig
from engine.models.inputs import StepInputs
from engine.models.layers.head import Head


def decoder_tensor_name(stored_name: str) -> str:
    """The model's name for a tensor: `…Model` checkpoints omit the "model." of `…ForCausalLM`."""
    return stored_name if stored_name.startswith(("model.", "score.", "lm_head.")) else f"model.{stored_name}"


class PooledDecoder(nn.Module):
    """Causal layers; the pooling chooses the rows."""

    UNUSED: ClassVar[tuple[str, ...]] = ("lm_head.",)

    def __init__(
        self,
        family: type[CausalLM],
        config: DecoderConfig,
        *,
        score: Head | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`family`: whose layers it has. `score` None: embeddings only."""
        super().__init__()
        self.FUSED = family.FUSED
        self.config = config
        self.dtype = dtype
        self.device = device
        self.model = family.make_decoder(config)
        self.score = score
        self._ropes = make_ropes(config, dtype=dtype, device=device)

    @property
    def attention_specs(self) -> tuple[AttentionSpec, ...]:
        return self.model.attention_specs

    def shared_weights(self) -> dict[str, str]:
        return {}

    def forward(self, inputs: StepInputs, cache: PagedKVCache) -> torch.Tensor:
        """The final hidden states of the sampled rows: [S, hidden]."""
        return self.model(inputs, cache, self._ropes)  # type: ignore[no-any-return]

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → logits, float32 [S, num_labels]. Requires a score layer."""
        if self.score is None:
            raise TypeError("This decoder was built without a score layer.")
        return self.score(pooled)  # type: ignore[no-any-return]
