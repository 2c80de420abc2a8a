"""What the engine knows of an architecture before its model's class is imported. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeAlias

from engine.models.decoder_config import DecoderConfig
from engine.models.encoder_config import EncoderConfig


class SavedHead(StrEnum):
    """What a checkpoint has on top of its layers; values are the ends of names in config.json."""

    NONE = "Model"
    CAUSAL_LM = "ForCausalLM"
    MASKED_LM = "ForMaskedLM"
    PRETRAINING = "ForPreTraining"
    CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    name: str  # in config.json
    head: SavedHead
    model_class: str  # "module:class": the class needs torch, the list of architectures must not
    pools: bool = True  # whether the pooling runner supports it
    looks_both_ways: bool = False  # a decoder that does, whatever config.json says

    @property
    def generates(self) -> bool:
        return self.head is SavedHead.CAUSAL_LM

    @property
    def classifies(self) -> bool:
        return self.head is SavedHead.CLASSIFIER

    def load_class(self) -> Any:
        """A CausalLM for decoders; an EncoderModel for encoders."""
        return resolve_name(self.model_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderArchitecture(_Architecture):
    read_config: Callable[[Path, Mapping[str, Any] | None], DecoderConfig]
    """(directory, --hf-overrides) → its configuration. Raises CheckpointError and UnsupportedModel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderArchitecture(_Architecture):
    read_config: Callable[[Path, Mapping[str, Any] | None], EncoderConfig]


Architecture: TypeAlias = DecoderArchitecture | EncoderArchitecture
