"""Reads config.json of encoders in the terms that BERT, ModernBERT and their relatives share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.checkpoint.quantisation import read_quantisation
from engine.checkpoint.raw_config import read_raw_config
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.config import ConfigReader
from engine.models.pooling_type import PoolingType


class Positions(StrEnum):
    """How an encoder knows the order of tokens; values are those of `position_embedding_type`."""

    LEARNED = "absolute"  # a table of embeddings
    ROTARY = "rotary"
    ALIBI = "alibi"  # a bias that falls with the distance (Press et al. 2022)
    BUCKETS = "relative"  # a table of embeddings, and a learned bias for each range of distances, as in T5


class EncoderActivation(StrEnum):
    """The activations of feed-forward layers and classifiers; values are Hugging Face's names."""

    GELU = "gelu"
    GELU_TANH = "gelu_new"
    RELU = "relu"
    SILU = "silu"
    TANH = "tanh"


_SYNONYMS = {
    "gelu_pytorch_tanh": EncoderActivation.GELU_TANH,
    "gelu_fast": EncoderActivation.GELU_TANH,
    "gelu_python": EncoderActivation.GELU,
    "swish": EncoderActivation.SILU,
}

Settings = dict[str, Any]
"""config.json under the names that `read_encoder_config` knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFamily:
    """How a family's files differ from BERT's."""

    positions: Positions = Positions.LEARNED
    pads_positions: bool = False  # the first rows of its table of positions are for padding
    head_activation: EncoderActivation = EncoderActivation.TANH  # between a classifier's two layers
    keys: Mapping[str, str] = field(default_factory=dict)  # a setting's name → its own, where it has one
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of settings that config.json may omit
    translate: Callable[[Settings], Settings] = dict  # what takes more; raises UnsupportedModel
    names: tuple[tuple[str, str], ...] = ()  # regular expressions: a stored tensor's name → the model's

    def settings(self, raw: Mapping[str, Any]) -> Settings:
        own = {ours: raw[theirs] for ours, theirs in self.keys.items() if raw.get(theirs) is not None}
        given = {key: value for key, value in raw.items() if value is not None}
        return self.translate({**self.defaults, **given, **own})

    def tensor_name(self, stored_name: str) -> str:
        """The model's name for a checkpoint's tensor, whichever task it was saved for."""
        name = stored_name
        for pattern, replacement in self.names:
            name = re.sub(pattern, replacement, name)
        # Checkpoints from TensorFlow name a LayerNorm's tensors like this.
        return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """In Hugging Face's terms."""

    family: EncoderFamily
    vocab_size: int
    hidden_size: int
    embedding_size: int  # where it isn't the hidden size, a projection follows the embeddings
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    activation: EncoderActivation
    is_gated: bool  # down(activation(gate(x)) * up(x))
    attention_bias: bool
    up_bias: bool  # in the feed-forward layers, on the way up
    down_bias: bool
    has_qk_norm: bool  # queries and keys are normalised
    type_vocab_size: int  # 0: no embeddings of token types
    num_positions: int  # rows of the table of positions
    first_position: int  # the row of a sequence's first token
    rope_thetas: tuple[float, ...]  # of every layer; empty without rotary positions
    position_scale: float  # positions are multiplied by it before the rotation
    windows: tuple[int | None, ...]  # of every layer: how many tokens it sees to either side; None = all
    norm_bias: bool
    head_activation: EncoderActivation
    head_bias: bool
    pooling: PoolingType  # of embeddings, unless other files name it
    classifier_pooling: PoolingType
    dtype: str | None  # the checkpoint's; None = unspecified

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """Of one sequence."""
        return self.num_positions - self.first_position


def read_encoder_config(
    family: EncoderFamily, directory: Path, overrides: Mapping[str, Any] | None = None
) -> EncoderConfig:
    """`overrides` are --hf-overrides. Raises CheckpointError and UnsupportedModel."""
    raw = read_raw_config(directory, overrides)
    read_quantisation(directory, raw)
    settings = family.settings(raw)
    reader = ConfigReader(directory / "config.json", settings)
    _refuse_unsupported(settings, family)
    num_heads, hidden_size = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    if hidden_size % num_heads:
        raise CheckpointError(f"hidden_size {hidden_size} can't be shared by {num_heads} attention heads.")
    num_layers = reader.integer("num_hidden_layers")
    return EncoderConfig(
        family=family,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        embedding_size=reader.integer("embedding_size", hidden_size),
        intermediate_size=reader.integer("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        layer_norm_eps=reader.number("layer_norm_eps", 1e-12),
        activation=_activation(settings.get("hidden_act", "gelu")),
        is_gated=settings.get("is_gated", False),
        attention_bias=bool(settings.get("attention_bias", True)),
        up_bias=bool(settings.get("up_bias", True)),
        down_bias=bool(settings.get("down_bias", True)),
        has_qk_norm=settings.get("has_qk_norm", False),
        type_vocab_size=0 if settings.get("type_vocab_size") == 0 else reader.integer("type_vocab_size", 2),
        num_positions=reader.integer("max_position_embeddings"),
        first_position=settings.get("pad_token_id", 0) + 1 if family.pads_positions else 0,
        rope_thetas=_rope_thetas(settings, num_layers) if family.positions is Positions.ROTARY else (),
        position_scale=settings.get("position_scale", 1.0),
        windows=tuple(settings.get("windows", (None,) * num_layers)),
        norm_bias=bool(settings.get("norm_bias", True)),
        head_activation=_activation(settings.get("head_activation", family.head_activation)),
        head_bias=bool(settings.get("head_bias", True)),
        pooling=PoolingType(settings.get("pooling", PoolingType.CLS)),
        classifier_pooling=_classifier_pooling(settings.get("classifier_pooling", "cls")),
        dtype=settings.get("dtype") or settings.get("torch_dtype"),
    )


def _rope_thetas(settings: Settings, num_layers: int) -> tuple[float, ...]:
    thetas = settings.get("rope_thetas", (settings.get("rope_theta", 10_000.0),) * num_layers)
    for theta in thetas:
        if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
            raise CheckpointError(f"config.json: rope_theta is {theta!r}; it must be a positive number.")
    return tuple(map(float, thetas))


def _activation(name: Any) -> EncoderActivation:
    try:
        return _SYNONYMS.get(name) or EncoderActivation(name)
    except ValueError:
        raise UnsupportedModel(
            f"Activation {name!r} isn't supported; {', '.join(EncoderActivation)} are."
        ) from None


def _classifier_pooling(name: Any) -> PoolingType:
    known = {"cls": PoolingType.CLS, "mean": PoolingType.MEAN}
    if name not in known:
        raise UnsupportedModel(f"classifier_pooling {name!r} isn't supported; 'cls' and 'mean' are.")
    return known[name]


def _refuse_unsupported(settings: Settings, family: EncoderFamily) -> None:
    if settings.get("lora_adaptations"):
        raise UnsupportedModel(
            "Task adapters inside a checkpoint (lora_adaptations, as in jina-embeddings-v3) aren't "
            "supported: merge one task into it, as a JinaEmbeddingsV3Model of transformers."
        )
    wanted = Positions.LEARNED if family.positions is Positions.BUCKETS else family.positions
    kind = settings.get("position_embedding_type", wanted)
    if kind != wanted:
        raise UnsupportedModel(f"Positions of kind {kind!r} aren't supported; {str(wanted)!r} are.")
    if settings.get("is_decoder") or settings.get("add_cross_attention"):
        raise UnsupportedModel("An encoder that is used as a decoder (is_decoder) isn't supported.")
