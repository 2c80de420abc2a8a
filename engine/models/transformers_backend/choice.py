"""Which code runs a checkpoint: a class of this engine's, or transformers' own. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.errors import UnsupportedModel
from engine.models.architecture import DecoderArchitecture, SavedHead
from engine.models.decoder_config import DecoderConfig
from engine.models.registry import generating_architecture

_MAY_GENERATE = (SavedHead.CAUSAL_LM, "LMHeadModel", "ForConditionalGeneration")
_CLASS = "engine.models.transformers_backend.model:TransformersCausalLM"


class ModelImpl(StrEnum):
    """Values of --model-impl."""

    AUTO = "auto"
    NATIVE = "native"
    TRANSFORMERS = "transformers"


def choose_implementation(
    directory: Path, overrides: Mapping[str, Any] | None, model_impl: str
) -> DecoderArchitecture:
    """AUTO: this engine's class if there is one that supports the configuration, transformers' otherwise.

    Raises CheckpointError, and UnsupportedModel for what neither runs.
    """
    name = architecture_of(directory, read_raw_config(directory, overrides))
    if model_impl == ModelImpl.TRANSFORMERS and name.endswith(_MAY_GENERATE):
        return of_transformers(name)
    try:
        native = generating_architecture(name)
        if model_impl == ModelImpl.AUTO:
            native.read_config(directory, overrides)
        return native
    except UnsupportedModel:
        if model_impl == ModelImpl.NATIVE or not name.endswith(_MAY_GENERATE):
            raise
        return of_transformers(name)


def of_transformers(name: str) -> DecoderArchitecture:
    return DecoderArchitecture(
        name=name, head=SavedHead.CAUSAL_LM, model_class=_CLASS, read_config=_read_config
    )


def is_of_transformers(architecture: DecoderArchitecture) -> bool:
    return architecture.model_class == _CLASS


def _read_config(directory: Path, overrides: Mapping[str, Any] | None) -> DecoderConfig:
    from engine.models.transformers_backend.family import read_transformers_config  # slow to import

    return read_transformers_config(directory, overrides)  # type: ignore[return-value]
