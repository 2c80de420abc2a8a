"""Among how many devices a decoder can be divided, and what each then has. Imports no torch by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from engine.errors import ConfigError
from engine.models.decoder_config import DecoderConfig

C = TypeVar("C", bound=DecoderConfig)

_WIDTHS = ("intermediate_size", "expert_size")  # of MLPs; a mixture's experts may have one of their own


def check_divisible(config: DecoderConfig, size: int) -> None:
    """Raises ConfigError, naming what would work, and UnsupportedModel."""
    if size == 1:
        return
    if not isinstance(config, DecoderConfig):
        from engine.models.transformers_backend import division  # slow to import

        division.check_divisible(config, size)
        return
    if _fits(config, size):
        return
    working = [str(other) for other in range(1, config.num_attention_heads + 1) if _fits(config, other)]
    raise ConfigError(
        f"--tensor-parallel-size {size} doesn't divide this model: it has {config.num_attention_heads} "
        f"attention heads, {config.num_key_value_heads} key-value heads and MLPs of "
        f"{' and '.join(map(str, _widths(config).values()))} features. Possible: {', '.join(working)}."
    )


def share_of(config: C, size: int) -> C:
    """The configuration of one device's share: all layers, with fewer heads and a narrower MLP."""
    specs = (
        replace(spec, num_heads=spec.num_heads // size, num_kv_heads=max(1, spec.num_kv_heads // size))
        for spec in config.attention_specs
    )
    widths: dict[str, Any] = {name: width // size for name, width in _widths(config).items()}
    return replace(config, attention_specs=tuple(specs), **widths)


def _fits(config: DecoderConfig, size: int) -> bool:
    """Key-value heads are divided, or repeated where there are fewer than devices."""
    kv_heads = config.num_key_value_heads
    return not (
        config.num_attention_heads % size
        or (kv_heads % size and size % kv_heads)
        or any(width % size for width in _widths(config).values())
    )


def _widths(config: DecoderConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in _WIDTHS if hasattr(config, name)}
