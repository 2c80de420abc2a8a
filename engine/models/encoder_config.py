"""Reads config.json of encoders: BERT and the RoBERTa family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.checkpoint.quantisation import read_quantisation
from engine.checkpoint.raw_config import read_raw_config
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.config import ConfigReader


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFamily:
    """How a family differs from the others."""

    pads_positions: bool  # the first rows of its table of positions are for padding
    has_pooler: bool  # a layer of its own between the first token and a classifier

    def first_position(self, raw: Mapping[str, Any]) -> int:
        """The row of a sequence's first token in the table of positions."""
        return int(raw.get("pad_token_id") or 0) + 1 if self.pads_positions else 0


BERT = EncoderFamily(pads_positions=False, has_pooler=True)
ROBERTA = EncoderFamily(pads_positions=True, has_pooler=False)


class EncoderActivation(StrEnum):
    """The activation of the feed-forward layers; values are Hugging Face's names."""

    GELU = "gelu"
    GELU_TANH = "gelu_new"
    RELU = "relu"
    SILU = "silu"


_SYNONYMS = {
    "gelu_pytorch_tanh": EncoderActivation.GELU_TANH,
    "gelu_fast": EncoderActivation.GELU_TANH,
    "gelu_python": EncoderActivation.GELU,
    "swish": EncoderActivation.SILU,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """In Hugging Face's terms."""

    family: EncoderFamily
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    activation: EncoderActivation
    type_vocab_size: int
    num_positions: int  # rows of the table of positions
    first_position: int  # the row of a sequence's first token
    dtype: str | None  # the checkpoint's; None = unspecified

    @property
    def max_tokens(self) -> int:
        """Of one sequence."""
        return self.num_positions - self.first_position


def read_encoder_config(
    family: EncoderFamily, directory: Path, overrides: Mapping[str, Any] | None = None
) -> EncoderConfig:
    """`overrides` are --hf-overrides. Raises CheckpointError and UnsupportedModel."""
    raw = read_raw_config(directory, overrides)
    reader = ConfigReader(directory / "config.json", raw)
    read_quantisation(directory, raw)
    _refuse_unsupported(raw)
    num_heads, hidden_size = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    if hidden_size % num_heads:
        raise CheckpointError(f"hidden_size {hidden_size} can't be shared by {num_heads} attention heads.")
    return EncoderConfig(
        family=family,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=reader.integer("intermediate_size"),
        num_hidden_layers=reader.integer("num_hidden_layers"),
        num_attention_heads=num_heads,
        layer_norm_eps=reader.number("layer_norm_eps", 1e-12),
        activation=_activation(raw.get("hidden_act", "gelu")),
        type_vocab_size=reader.integer("type_vocab_size", 2),
        num_positions=reader.integer("max_position_embeddings"),
        first_position=family.first_position(raw),
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
    )


def _activation(name: Any) -> EncoderActivation:
    try:
        return _SYNONYMS.get(name) or EncoderActivation(name)
    except ValueError:
        raise UnsupportedModel(
            f"Activation {name!r} isn't supported; {', '.join(EncoderActivation)} are."
        ) from None


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedModel(
            f"Positions of kind {raw['position_embedding_type']!r} aren't supported; 'absolute' are."
        )
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise UnsupportedModel("An encoder that is used as a decoder (is_decoder) isn't supported.")
