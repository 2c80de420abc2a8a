"""Reads config.json into the shape that the model classes need, in flat and `rope_parameters` styles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.eos_tokens import declared_eos_tokens
from engine.checkpoint.layout import check_not_quantised
from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.rope_config import Llama3Scaling, RopeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The configuration that Qwen3 and Llama share, in Hugging Face's terms."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool  # on the query, key, value and output projections
    dtype: str | None  # the checkpoint's, such as "bfloat16"; None = unspecified
    eos_token_ids: tuple[int, ...]  # the main one first; generation_config.json overrides config.json


def read_model_config(directory: Path, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """Raises CheckpointError for inconsistent files, UnsupportedModel for models that we can't run.

    `overrides` are --hf-overrides, which override config.json.
    """
    raw = read_raw_config(directory, overrides)
    architecture = architecture_of(directory, raw)
    reader = ConfigReader(directory / "config.json", raw)
    check_not_quantised(directory, raw)
    _refuse_unsupported(raw)
    num_heads = reader.integer("num_attention_heads")
    hidden_size = reader.integer("hidden_size")
    num_kv_heads = reader.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"{num_heads} attention heads can't share {num_kv_heads} key-value heads evenly."
        )
    return ModelConfig(
        architecture=architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=reader.integer("intermediate_size"),
        num_hidden_layers=reader.integer("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=reader.integer("head_dim", hidden_size // num_heads),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope=_rope(reader),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
        eos_token_ids=declared_eos_tokens(directory, raw),
    )


class ConfigReader:
    """Typed access to a JSON object; errors name the file, the key and the value."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self._path = path
        self._raw = raw

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self._path}: {key} is {value!r}; it must be a positive integer.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{self._path}: {key} is {value!r}; it must be a positive number.")
        return float(value)

    def object(self, *keys: str) -> ConfigReader:
        """The first of these objects that exists; empty if none does."""
        found: Mapping[str, Any] = next(
            (self._raw[key] for key in keys if isinstance(self._raw.get(key), dict)), {}
        )
        return ConfigReader(self._path, found)

    def text(self, *keys: str) -> str | None:
        return next((str(self._raw[key]) for key in keys if self._raw.get(key) is not None), None)


def _rope(reader: ConfigReader) -> RopeConfig:
    """From `rope_parameters` (transformers 5), or from separate `rope_theta` and `rope_scaling`."""
    parameters = reader.object("rope_parameters", "rope_scaling")
    theta = parameters.number("rope_theta", reader.number("rope_theta", 10_000.0))
    kind = parameters.text("rope_type", "type") or "default"
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise UnsupportedModel(f"RoPE scaling {kind!r} isn't supported; 'default' and 'llama3' are.")
    scaling = Llama3Scaling(
        factor=parameters.number("factor"),
        low_freq_factor=parameters.number("low_freq_factor"),
        high_freq_factor=parameters.number("high_freq_factor"),
        original_max_position_embeddings=parameters.integer("original_max_position_embeddings"),
    )
    return RopeConfig(theta=theta, scaling=scaling)


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    """Refuse features of these architectures that we don't implement, rather than compute wrong results."""
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"Activation {activation!r} isn't supported; 'silu' is.")
    layer_types = set(raw.get("layer_types") or ())
    slides = raw.get("use_sliding_window", False) and raw.get("sliding_window")
    if slides or layer_types - {"full_attention"}:
        raise UnsupportedModel("Sliding-window attention isn't supported; set use_sliding_window to false.")
    if raw.get("mlp_bias"):
        raise UnsupportedModel("Biases in the MLP (mlp_bias) aren't supported.")
    if (raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel("Partial rotary embeddings (partial_rotary_factor) aren't supported.")
