"""The configuration of rotary position embeddings, read from config.json. Knows nothing of torch.

Two styles are read: `rope_parameters` (transformers 5), which has one object, or one for each type of layer;
and `rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.errors import CheckpointError, UnsupportedModel
from engine.models.config import ConfigReader

DEFAULT_THETA = 10_000.0
_KINDS = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """All positions are divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScaling:
    """Theta grows with the length beyond the original one (NTK-aware scaling)."""

    factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths are stretched by `factor`, short ones stay, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """As Llama 3's, blended by the number of rotations within the original length (Peng et al. 2023)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float  # with more rotations a wavelength stays
    beta_slow: float  # with fewer it is stretched by `factor`
    truncates: bool  # whether the blended dimensions are rounded to whole numbers
    attention_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeScaling:
    """A divisor for each frequency: two lists, for sequences up to the original length and beyond it."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float


RopeScaling: TypeAlias = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    theta: float
    rotary_fraction: float = 1.0  # of each head's dimensions; the others aren't rotated
    scaling: RopeScaling | None = None

    def rotary_dim(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated: the first ones."""
        return int(head_dim * self.rotary_fraction)

    @property
    def attention_factor(self) -> float:
        """Queries and keys are multiplied by it."""
        scales = isinstance(self.scaling, YarnScaling | LongRopeScaling)
        return self.scaling.attention_factor if scales else 1.0  # type: ignore[union-attr]

    @property
    def reach(self) -> int:
        """The length that the scaling extends the original one to; 0 if max_position_embeddings says it."""
        if isinstance(self.scaling, YarnScaling | DynamicScaling):
            return int(self.scaling.original_max_position_embeddings * self.scaling.factor)
        return 0


def read_ropes(
    reader: ConfigReader,
    layer_types: Sequence[str],
    head_dim: int,
    *,
    theta: float = DEFAULT_THETA,
    sliding_theta: float | None = None,
) -> tuple[RopeConfig, ...]:
    """Of each layer. `theta` is the family's default.

    `sliding_theta`: the family's layers with a window have this theta, and no scaling, unless
    `rope_parameters` has an object for them. Raises CheckpointError and UnsupportedModel.
    """
    parameters = reader.object("rope_parameters", "rope_scaling")
    by_type: dict[str, RopeConfig] = {}
    for layer_type in dict.fromkeys(layer_types):
        is_sliding = layer_type == "sliding_attention"
        if parameters.has_object(layer_type):
            default = sliding_theta if is_sliding and sliding_theta is not None else theta
            by_type[layer_type] = read_rope(reader, parameters.object(layer_type), head_dim, theta=default)
        elif is_sliding and sliding_theta is not None:
            by_type[layer_type] = RopeConfig(theta=sliding_theta)
        else:
            by_type[layer_type] = read_rope(reader, parameters, head_dim, theta=theta)
    return tuple(by_type[layer_type] for layer_type in layer_types)


def read_rope(
    reader: ConfigReader, parameters: ConfigReader, head_dim: int, *, theta: float = DEFAULT_THETA
) -> RopeConfig:
    """`parameters`: the object with the scaling; `reader`: the configuration around it."""
    fraction = parameters.number("partial_rotary_factor", reader.number("partial_rotary_factor", 1.0))
    config = RopeConfig(
        theta=parameters.number("rope_theta", reader.number("rope_theta", theta)),
        rotary_fraction=fraction,
        scaling=_read_scaling(reader, parameters),
    )
    dim = config.rotary_dim(head_dim)
    if fraction > 1 or dim % 2 or dim < 2:
        raise CheckpointError(
            f"{reader.path}: {fraction} (partial_rotary_factor) of {head_dim} dimensions can't be rotated; "
            "it must be an even number of them."
        )
    if isinstance(config.scaling, LongRopeScaling):
        _check_factors(reader, config.scaling, dim)
    return config


def _read_scaling(reader: ConfigReader, parameters: ConfigReader) -> RopeScaling | None:
    kind = _kind(parameters)
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=parameters.number("factor"))
    limit = reader.integer("max_position_embeddings")
    if kind == "dynamic":
        return DynamicScaling(factor=parameters.number("factor"), original_max_position_embeddings=limit)
    # Phi-3 has it beside the object, where it counts more.
    original = reader.integer(
        "original_max_position_embeddings", parameters.integer("original_max_position_embeddings", limit)
    )
    if kind == "llama3":
        return Llama3Scaling(
            factor=parameters.number("factor"),
            low_freq_factor=parameters.number("low_freq_factor"),
            high_freq_factor=parameters.number("high_freq_factor"),
            original_max_position_embeddings=original,
        )
    factor = parameters.number("factor", limit / original)
    return (_yarn if kind == "yarn" else _longrope)(parameters, original, factor)


def _kind(parameters: ConfigReader) -> str:
    kind = parameters.text("rope_type", "type") or "default"
    if kind == "su" or (kind == "yarn" and parameters.has("short_factor")):
        return "longrope"  # as the first checkpoints of Phi-3 call it
    if kind == "mrope":
        return "default"  # for text, all its axes have the same positions
    if kind not in _KINDS:
        raise UnsupportedModel(f"RoPE scaling {kind!r} isn't supported; {', '.join(_KINDS)} are.")
    return kind


def _yarn(parameters: ConfigReader, original: int, factor: float) -> YarnScaling:
    numerator, denominator = (
        parameters.optional_number("mscale"),
        parameters.optional_number("mscale_all_dim"),
    )
    attention_factor = parameters.optional_number("attention_factor")
    if attention_factor is None:
        attention_factor = (
            _magnitude(factor, numerator) / _magnitude(factor, denominator)
            if numerator and denominator
            else _magnitude(factor, 1.0)
        )
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=parameters.number("beta_fast", 32.0),
        beta_slow=parameters.number("beta_slow", 1.0),
        truncates=parameters.boolean("truncate", True),
        attention_factor=attention_factor,
    )


def _magnitude(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(parameters: ConfigReader, original: int, factor: float) -> LongRopeScaling:
    attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        short_factors=parameters.numbers("short_factor"),
        long_factors=parameters.numbers("long_factor"),
        original_max_position_embeddings=original,
        attention_factor=parameters.number("attention_factor", attention_factor),
    )


def _check_factors(reader: ConfigReader, scaling: LongRopeScaling, dim: int) -> None:
    for name, factors in (("short_factor", scaling.short_factors), ("long_factor", scaling.long_factors)):
        if len(factors) != dim // 2:
            raise CheckpointError(
                f"{reader.path}: {name} has {len(factors)} numbers; the rotated dimensions need {dim // 2}."
            )
