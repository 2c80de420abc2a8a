"""Which tokens end a sequence, for the scheduler, the sampler and the grammars alike. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.raw_config import read_json


def declared_eos_tokens(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The end tokens that the checkpoint names; generation_config.json overrides config.json.

    So does transformers. `config` is config.json as read, overrides included.
    """
    generation_config = directory / "generation_config.json"
    generation = read_json(generation_config) if generation_config.exists() else {}
    value = generation.get("eos_token_id")
    value = config.get("eos_token_id") if value is None else value
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(int(token) for token in values))


def main_eos_first(named: tuple[int, ...], main: int | None) -> tuple[int, ...]:
    """The tokenizer's own end token first, if it has one, then the others."""
    return named if main is None else (main, *(token for token in named if token != main))
