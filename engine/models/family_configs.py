"""How each family of decoders reads its config.json: what differs from Llama's. Knows nothing of torch.

Defaults are those of transformers' configuration classes: older files leave out what equals them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from engine.errors import UnsupportedModel
from engine.models.config import ConfigFile, ConfigReader
from engine.models.decoder_config import FULL, SLIDING, DecoderConfig, read_decoder, read_layer_types
from engine.models.rope_config import read_ropes

C = TypeVar("C", bound=DecoderConfig)


def read_llama(file: ConfigFile) -> DecoderConfig:
    return read_decoder(file, read_layer_types(file.reader, lambda layer: False))


def read_qwen2(file: ConfigFile) -> DecoderConfig:
    """Biases on queries, keys and values alone."""
    file = file.with_defaults(sliding_window=4096)
    return replace(read_decoder(file, _qwen_layer_types(file.reader)), qkv_bias=True, o_bias=False)


def read_qwen3(file: ConfigFile) -> DecoderConfig:
    file = file.with_defaults(sliding_window=4096, head_dim=128)
    return read_decoder(file, _qwen_layer_types(file.reader))


def _qwen_layer_types(reader: ConfigReader) -> tuple[str, ...]:
    """Layers from max_window_layers on have a window, if use_sliding_window says so."""
    slides = reader.boolean("use_sliding_window", False) and reader.has("sliding_window")
    first = reader.integer("max_window_layers", 28, minimum=0)
    return read_layer_types(reader, lambda layer: slides and layer >= first)


_MISTRAL = {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131_072}


def read_mistral(file: ConfigFile) -> DecoderConfig:
    """All layers have a window, or none has: then the file says null."""
    file = file.with_defaults(**_MISTRAL)
    return replace(read_decoder(file, _uniform_types(file.reader)), qkv_bias=False, o_bias=False)


def read_ministral(file: ConfigFile) -> DecoderConfig:
    file = file.with_defaults(**_MISTRAL)
    slides = file.reader.has("sliding_window")
    types = read_layer_types(file.reader, lambda layer: slides)
    return replace(read_decoder(file, types), qkv_bias=False, o_bias=False)


def read_phi3(file: ConfigFile) -> DecoderConfig:
    file = file.with_defaults(rms_norm_eps=1e-5, max_position_embeddings=4096)
    config = read_decoder(file, _uniform_types(file.reader), rotates_partly=True)
    return replace(config, qkv_bias=False, o_bias=False)


def _uniform_types(reader: ConfigReader) -> tuple[str, ...]:
    window = reader.optional_integer("sliding_window")
    return (FULL if window is None else SLIDING,) * reader.integer("num_hidden_layers")


def read_smollm3(file: ConfigFile) -> DecoderConfig:
    """Some layers have no positions; of those, some have a window."""
    file = file.with_defaults(tie_word_embeddings=True, rope_theta=2e6, num_key_value_heads=4)
    reader = file.reader
    has_rope = _layers_with_rope(reader)
    slides = reader.boolean("use_sliding_window", False) and reader.has("sliding_window")
    config = read_decoder(file, read_layer_types(reader, lambda layer: slides and not has_rope[layer]))
    ropes = (rope if wanted else None for rope, wanted in zip(config.ropes, has_rope, strict=True))
    return replace(config, ropes=tuple(ropes))


def _layers_with_rope(reader: ConfigReader) -> list[bool]:
    num_layers = reader.integer("num_hidden_layers")
    listed = reader.names("no_rope_layers", length=num_layers)
    if listed is not None:
        return [value not in ("0", "False") for value in listed]
    interval = reader.integer("no_rope_layer_interval", 4)
    return [(layer + 1) % interval != 0 for layer in range(num_layers)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteConfig(DecoderConfig):
    embedding_multiplier: float
    residual_multiplier: float
    logits_scaling: float  # logits are divided by it


def read_granite(file: ConfigFile) -> DecoderConfig:
    reader = file.reader
    types = read_layer_types(reader, lambda layer: False)
    return _extended(
        GraniteConfig,
        read_decoder(file, types, scale=reader.number("attention_multiplier", 1.0)),
        embedding_multiplier=reader.number("embedding_multiplier", 1.0),
        residual_multiplier=reader.number("residual_multiplier", 1.0),
        logits_scaling=reader.number("logits_scaling", 1.0),
    )


def read_olmo2(file: ConfigFile) -> DecoderConfig:
    file = file.with_defaults(rms_norm_eps=1e-5)
    return read_decoder(file, read_layer_types(file.reader, lambda layer: False))


def read_olmo3(file: ConfigFile) -> DecoderConfig:
    """Three of four layers have a window; only the others' positions are scaled."""
    file = file.with_defaults(rms_norm_eps=1e-5, sliding_window=4096, rope_theta=5e5)
    reader = file.reader
    types = read_layer_types(reader, lambda layer: (layer + 1) % 4 != 0)
    config = read_decoder(file, types)
    theta = reader.object("rope_parameters", "rope_scaling").number("rope_theta", reader.number("rope_theta"))
    return replace(config, ropes=read_ropes(reader, types, config.head_dim, sliding_theta=theta))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Config(DecoderConfig):
    final_logit_softcap: float | None


def read_gemma3(file: ConfigFile) -> DecoderConfig:
    """Five of six layers have a window, and positions of their own."""
    file = file.with_defaults(
        head_dim=256,
        tie_word_embeddings=True,
        sliding_window=4096,
        num_key_value_heads=4,
        max_position_embeddings=131_072,
    )
    reader = file.reader
    if reader.boolean("use_bidirectional_attention", False):
        raise UnsupportedModel(
            "A decoder that looks both ways (use_bidirectional_attention) isn't supported."
        )
    pattern = reader.integer("sliding_window_pattern", 6)
    types = read_layer_types(reader, lambda layer: (layer + 1) % pattern != 0)
    config = read_decoder(
        file,
        types,
        activation="gelu_pytorch_tanh",
        scale=reader.number("query_pre_attn_scalar", 256.0) ** -0.5,
    )
    local = reader.number("rope_local_base_freq", 1e4)
    ropes = read_ropes(reader, types, config.head_dim, theta=1e6, sliding_theta=local)
    cap = reader.optional_number("final_logit_softcapping")
    return _extended(Gemma3Config, replace(config, ropes=ropes), final_logit_softcap=cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3MoeConfig(DecoderConfig):
    sparse_layers: frozenset[int]  # those with experts
    expert_size: int  # of each expert's MLP
    num_experts: int
    num_chosen_experts: int  # for each token
    normalises_weights: bool


def read_qwen3_moe(file: ConfigFile) -> DecoderConfig:
    file = file.with_defaults(sliding_window=4096)
    reader = file.reader
    slides = reader.boolean("use_sliding_window", False)
    types = _uniform_types(reader) if slides else (FULL,) * reader.integer("num_hidden_layers")
    dense, step = reader.integers("mlp_only_layers"), reader.integer("decoder_sparse_step", 1)
    layers = range(len(types))
    return _extended(
        Qwen3MoeConfig,
        read_decoder(file, types),
        sparse_layers=frozenset(n for n in layers if n not in dense and (n + 1) % step == 0),
        expert_size=reader.integer("moe_intermediate_size", 768),
        num_experts=reader.integer("num_experts", reader.integer("num_local_experts", 128)),
        num_chosen_experts=reader.integer("num_experts_per_tok", 8),
        normalises_weights=reader.boolean("norm_topk_prob", False),
    )


def _extended(family: type[C], config: DecoderConfig, **own: Any) -> C:
    """The family's configuration: what decoders share, and its own fields."""
    shared = {field.name: getattr(config, field.name) for field in fields(config)}
    return family(**shared, **own)
