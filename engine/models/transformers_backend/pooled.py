"""A decoder of transformers for embeddings and classifiers, whose layers its language model has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.errors import UnsupportedModel
from engine.models.layers.head import Head
from engine.models.layers.weights import StoredLayer
from engine.models.tensor_source import TensorSource
from engine.models.transformers_backend.family import TransformersConfig, read_transformers_config
from engine.models.transformers_backend.model import TransformersCausalLM


def read_pooled_config(directory: Path, overrides: Mapping[str, Any] | None = None) -> TransformersConfig:
    """That of the language model with the same layers, as if it were causal and had no head of its own.

    Raises CheckpointError and UnsupportedModel.
    """
    raw = read_raw_config(directory, overrides)
    name = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(raw.get("model_type")), ""))
    if not name:
        raise UnsupportedModel(
            f"Architecture {architecture_of(directory, raw)!r} isn't supported by the pooling runner: it is "
            "neither an encoder of this engine's nor a decoder that transformers knows."
        )
    config = read_transformers_config(directory, {**(overrides or {}), "architectures": [name]})
    config.settings.tie_word_embeddings = True
    # Where it looks both ways, the engine's attention does.
    config.settings.is_causal = True
    if getattr(config.settings, "use_bidirectional_attention", False):
        config.settings.use_bidirectional_attention = False
    return config


class TransformersPooled(TransformersCausalLM):
    """With the interface of engine/models/pooled_decoder.py's PooledDecoder."""

    def __init__(
        self,
        config: TransformersConfig,
        source: TensorSource,
        *,
        score: Head | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(config, source, dtype=dtype, device=device)
        self.score = score
        if score is not None:
            score.load_from(StoredLayer(source, ["score"], device=device, dtype=dtype))

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → logits, float32 [S, num_labels]. Requires a score layer."""
        if self.score is None:
            raise TypeError("This decoder was built without a score layer.")
        return self.score(pooled)  # type: ignore[no-any-return]
