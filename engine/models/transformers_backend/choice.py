"""Which code runs a checkpoint: a class of this engine's, or transformers' own. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.errors import UnsupportedModel
from engine.models.architecture import Architecture, DecoderArchitecture, EncoderArchitecture, SavedHead
from engine.models.decoder_config import DecoderConfig
from engine.models.registry import ARCHITECTURES, generating_architecture, pooling_architecture

_MAY_GENERATE = (SavedHead.CAUSAL_LM, "LMHeadModel", "ForConditionalGeneration")
_MAY_POOL = (SavedHead.CAUSAL_LM, "LMHeadModel", SavedHead.CLASSIFIER, SavedHead.NONE)
_CLASS = "engine.models.transformers_backend.model:TransformersCausalLM"
_POOLED_CLASS = "engine.models.transformers_backend.pooled:TransformersPooled"


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


def choose_pooling(directory: Path, overrides: Mapping[str, Any] | None, model_impl: str) -> Architecture:
    """The same for the pooling runner: any decoder of transformers pools.

    Raises CheckpointError, and UnsupportedModel for what neither runs.
    """
    name = architecture_of(directory, read_raw_config(directory, overrides))
    head = next((head for head in _MAY_POOL if name.endswith(head)), None)
    is_encoder = isinstance(ARCHITECTURES.get(name), EncoderArchitecture)
    if head is None or is_encoder or model_impl == ModelImpl.NATIVE:
        return pooling_architecture(name)
    try:
        native = pooling_architecture(name)
        native.read_config(directory, overrides)
        if model_impl == ModelImpl.AUTO:
            return native
    except UnsupportedModel:
        pass  # transformers may know it
    return DecoderArchitecture(
        name=name,
        head=SavedHead.CAUSAL_LM if head == "LMHeadModel" else SavedHead(head),
        model_class=_POOLED_CLASS,
        read_config=_read_pooled_config,
    )


def of_transformers(name: str) -> DecoderArchitecture:
    return DecoderArchitecture(
        name=name, head=SavedHead.CAUSAL_LM, model_class=_CLASS, read_config=_read_config
    )


def is_of_transformers(architecture: DecoderArchitecture) -> bool:
    return architecture.model_class in (_CLASS, _POOLED_CLASS)


def _read_config(directory: Path, overrides: Mapping[str, Any] | None) -> DecoderConfig:
    from engine.models.transformers_backend.family import read_transformers_config  # slow to import

    return read_transformers_config(directory, overrides)  # type: ignore[return-value]


def _read_pooled_config(directory: Path, overrides: Mapping[str, Any] | None) -> DecoderConfig:
    from engine.models.transformers_backend.pooled import read_pooled_config  # slow to import

    return read_pooled_config(directory, overrides)  # type: ignore[return-value]
