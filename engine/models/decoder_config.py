"""The configuration of a decoder: grouped-query attention with rotary positions, and a gated MLP.

Each family reads its own fields (engine/models/family_configs.py) with what is here. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import CheckpointError, UnsupportedModel
from engine.models.attention.spec import AttentionSpec
from engine.models.config import ConfigFile, ConfigReader, ModelConfig
from engine.models.rope_config import RopeConfig, read_ropes

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """In Hugging Face's terms. All layers have as many heads, of the same size."""

    intermediate_size: int
    rms_norm_eps: float
    ropes: tuple[RopeConfig | None, ...]  # one for each layer; None = no positions
    qkv_bias: bool  # on the query, key and value projections
    o_bias: bool  # on attention's output projection
    mlp_bias: bool

    @property
    def num_hidden_layers(self) -> int:
        return len(self.attention_specs)

    @property
    def num_attention_heads(self) -> int:
        return self.attention_specs[0].num_heads

    @property
    def num_key_value_heads(self) -> int:
        return self.attention_specs[0].num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.attention_specs[0].head_dim


def read_decoder(
    file: ConfigFile,
    layer_types: Sequence[str],
    *,
    activation: str = "silu",
    scale: float | None = None,
    rotates_partly: bool = False,
) -> DecoderConfig:
    """The fields that the families share.

    `activation`: the only one that the family has. `scale`: of attention's scores.
    `rotates_partly`: whether the family has a partial_rotary_factor. Raises CheckpointError for an
    inconsistent file, UnsupportedModel for what we would compute wrongly.
    """
    reader = file.reader
    _refuse_unsupported(reader, activation, rotates_partly=rotates_partly)
    num_heads, num_kv_heads, head_dim = _heads(reader)
    specs = tuple(
        AttentionSpec(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5 if scale is None else scale,
            window=_window(reader, layer_type),
        )
        for layer_type in layer_types
    )
    ropes = read_ropes(reader, layer_types, head_dim)
    return DecoderConfig(
        architecture=file.architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        intermediate_size=reader.integer("intermediate_size"),
        attention_specs=specs,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        ropes=ropes,
        max_position_embeddings=max(
            reader.integer("max_position_embeddings"), *(rope.reach for rope in ropes)
        ),
        tie_word_embeddings=reader.boolean("tie_word_embeddings", False),
        qkv_bias=reader.boolean("attention_bias", False),
        o_bias=reader.boolean("attention_bias", False),
        mlp_bias=reader.boolean("mlp_bias", False),
        dtype=file.dtype,
        eos_token_ids=file.eos_token_ids,
    )


def read_layer_types(reader: ConfigReader, slides: Callable[[int], bool]) -> tuple[str, ...]:
    """As the file lists them; otherwise, `slides` says which layers have a window."""
    num_layers = reader.integer("num_hidden_layers")
    listed = reader.names("layer_types", length=num_layers)
    if listed is None:
        return tuple(SLIDING if slides(layer) else FULL for layer in range(num_layers))
    if unknown := sorted(set(listed) - {FULL, SLIDING}):
        raise UnsupportedModel(f"Layers of type {unknown[0]!r} aren't supported; {FULL} and {SLIDING} are.")
    return listed


def _heads(reader: ConfigReader) -> tuple[int, int, int]:
    """Of queries, of keys and values, and their size."""
    num_heads, hidden_size = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    num_kv_heads = reader.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"{num_heads} attention heads can't share {num_kv_heads} key-value heads evenly."
        )
    return num_heads, num_kv_heads, reader.integer("head_dim", hidden_size // num_heads)


def _window(reader: ConfigReader, layer_type: str) -> int | None:
    return reader.integer("sliding_window") if layer_type == SLIDING else None


def _refuse_unsupported(reader: ConfigReader, activation: str, *, rotates_partly: bool) -> None:
    wanted = reader.text("hidden_activation", "hidden_act") or activation
    if wanted != activation:
        raise UnsupportedModel(f"Activation {wanted!r} isn't supported; {activation!r} is.")
    fractions = (reader, reader.object("rope_parameters", "rope_scaling"))
    if not rotates_partly and any(one.number("partial_rotary_factor", 1.0) != 1 for one in fractions):
        raise UnsupportedModel("Partial rotary embeddings (partial_rotary_factor) aren't supported.")
