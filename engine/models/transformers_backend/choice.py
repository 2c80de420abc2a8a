"""Which code runs a checkpoint: a class of this engine's, or transformers' own. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.errors import CheckpointError, ConfigError, UnsupportedModel
from engine.models.architecture import Architecture, DecoderArchitecture, EncoderArchitecture, SavedHead
from engine.models.config import ModelConfig
from engine.models.decoder_config import DecoderConfig
from engine.models.registry import ARCHITECTURES, generating_architecture, pooling_architecture

_MAY_GENERATE = (SavedHead.CAUSAL_LM, "LMHeadModel", "ForConditionalGeneration")
_MAY_POOL = (SavedHead.CAUSAL_LM, "LMHeadModel", SavedHead.CLASSIFIER, SavedHead.NONE)  # ends of names
_MODULE = "engine.models.transformers_backend.model"
_GENERATING, _POOLING = f"{_MODULE}:TransformersCausalLM", f"{_MODULE}:PooledTransformers"


class ModelImpl(StrEnum):
    """Values of --model-impl."""

    AUTO = "auto"
    NATIVE = "native"
    TRANSFORMERS = "transformers"


def choose_implementation(
    directory: Path, overrides: Mapping[str, Any] | None, model_impl: str
) -> DecoderArchitecture:
    """AUTO: this engine's class if there is one that supports the configuration, transformers' otherwise.

    Raises CheckpointError, UnsupportedModel for what neither runs, and ConfigError if NATIVE names no class.
    """
    name = architecture_of(directory, read_raw_config(directory, overrides))
    if model_impl == ModelImpl.TRANSFORMERS and name.endswith(_MAY_GENERATE):
        return of_transformers(name)
    try:
        native = generating_architecture(name)
        if model_impl == ModelImpl.AUTO:
            native.read_config(directory, overrides)
        return native
    except UnsupportedModel as error:
        if not name.endswith(_MAY_GENERATE):
            raise
        if model_impl == ModelImpl.NATIVE:
            raise _no_own_class(name) from error
        return of_transformers(name)


def choose_pooling_implementation(
    directory: Path, overrides: Mapping[str, Any] | None, model_impl: str
) -> Architecture:
    """The same for the pooling runner: any decoder that transformers runs can embed and classify."""
    name = architecture_of(directory, read_raw_config(directory, overrides))
    is_encoder = isinstance(ARCHITECTURES.get(name), EncoderArchitecture)
    if model_impl == ModelImpl.TRANSFORMERS and name.endswith(_MAY_POOL) and not is_encoder:
        return of_transformers(name, pools=True)
    try:
        native = pooling_architecture(name)
        if model_impl == ModelImpl.AUTO and isinstance(native, DecoderArchitecture):
            native.read_config(directory, overrides)
        return native
    except UnsupportedModel as error:
        if not name.endswith(_MAY_POOL):
            raise
        if model_impl == ModelImpl.NATIVE:
            raise _no_own_class(name) from error
        return of_transformers(name, pools=True)
    except CheckpointError:
        return native  # which reports it when it is read again


def _no_own_class(name: str) -> ConfigError:
    return ConfigError(
        f"--model-impl native: this engine has no class of its own for {name}. Leave the flag out: "
        "transformers' code may run it."
    )


def only_pools(name: str) -> bool:
    """Whether a model of this architecture has no language head, as far as its name tells."""
    known = ARCHITECTURES.get(name)
    if known is not None:
        return not known.generates
    return name.endswith((SavedHead.CLASSIFIER, SavedHead.NONE)) and not name.endswith("LMHeadModel")


def of_transformers(name: str, *, pools: bool = False) -> DecoderArchitecture:
    is_classifier, is_bare = name.endswith(SavedHead.CLASSIFIER), only_pools(name)
    return DecoderArchitecture(
        name=name,
        head=SavedHead.CLASSIFIER if is_classifier else SavedHead.NONE if is_bare else SavedHead.CAUSAL_LM,
        model_class=_POOLING if pools else _GENERATING,
        read_config=_read_config,
    )


def architecture_for(config: ModelConfig) -> DecoderArchitecture:
    """The one that read this configuration."""
    own = isinstance(config, DecoderConfig)
    return generating_architecture(config.architecture) if own else of_transformers(config.architecture)


def is_of_transformers(architecture: DecoderArchitecture) -> bool:
    return architecture.model_class in (_GENERATING, _POOLING)


def _read_config(directory: Path, overrides: Mapping[str, Any] | None) -> DecoderConfig:
    from engine.models.transformers_backend.family import read_transformers_config  # slow to import

    return read_transformers_config(directory, overrides)  # type: ignore[return-value]
