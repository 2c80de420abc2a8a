"""Builds a model of transformers and fills it from a source of tensors, without a second copy of them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from engine.checkpoint.layout import enumerate_names
from engine.errors import CheckpointError
from engine.models.tensor_source import TensorSource
from engine.models.transformers_backend.family import TransformersConfig

log = logging.getLogger(__name__)


class _StoredTensor:
    """Reads a tensor when transformers asks for its contents, as it does of safetensors' own slices."""

    def __init__(self, source: TensorSource, name: str) -> None:
        self._source = source
        self._name = name

    def __getitem__(self, key: Any) -> torch.Tensor:
        return self._source.tensor(self._name)[key]

    def get_shape(self) -> list[int]:
        return list(self._source.shape(self._name))


def build_empty(config: TransformersConfig, attention: str) -> PreTrainedModel:
    """The model without memory for its weights, to see how it is made."""
    with torch.device("meta"):
        model: PreTrainedModel = config.model_class._from_config(
            config.settings, attn_implementation=attention
        ).eval()
    return model


def load(
    config: TransformersConfig,
    source: TensorSource,
    *,
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """Transformers renames and merges stored tensors as the family's class needs them.

    Raises CheckpointError if tensors are missing or have other shapes.
    """
    try:
        model, found = config.model_class.from_pretrained(
            None,
            config=config.settings,
            state_dict={name: _StoredTensor(source, name) for name in source.names},
            dtype=dtype,
            device_map=None if device.type == "cpu" else str(device),
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except RuntimeError as error:
        if "size mismatch" not in str(error) and "mismatch" not in str(error):
            raise
        raise CheckpointError(f"The checkpoint doesn't fit its config.json: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"The checkpoint doesn't fit its config.json: it lacks {enumerate_names(missing)}."
        )
    if unused := sorted(found["unexpected_keys"]):
        log.warning("The checkpoint has tensors that the model doesn't use: %s.", enumerate_names(unused))
    loaded: PreTrainedModel = model.eval()
    return loaded
