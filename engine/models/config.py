"""What is read from config.json for every model, whatever its family. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.checkpoint.eos_tokens import declared_eos_tokens
from engine.checkpoint.quantisation import read_quantisation
from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.errors import CheckpointError
from engine.models.attention.spec import AttentionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the KV cache, the memory and the server need to know. A family's own fields are its subclass's."""

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int  # of the longest sequence that the model can run
    max_model_len: int | None = None  # of the longest that is served; None = the model's limit
    attention_specs: tuple[AttentionSpec, ...]  # one for each layer
    tie_word_embeddings: bool
    dtype: str | None  # the checkpoint's, such as "bfloat16"; None = unspecified
    eos_token_ids: tuple[int, ...]  # the main one first; generation_config.json overrides config.json

    @property
    def longest_sequence(self) -> int:
        return self.max_model_len or self.max_position_embeddings

    @property
    def computed_as(self) -> str:
        """The architecture whose code computes it."""
        return self.architecture


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """config.json with its overrides; for a multimodal model, the part that its text model needs."""

    reader: ConfigReader
    architecture: str
    dtype: str | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def open(cls, directory: Path, overrides: Mapping[str, Any] | None = None) -> ConfigFile:
        """Raises CheckpointError, and UnsupportedModel for quantised weights."""
        raw = read_raw_config(directory, overrides)
        read_quantisation(directory, raw)
        reader = ConfigReader(directory / "config.json", raw)
        return cls(
            reader=reader,
            architecture=architecture_of(directory, raw),
            dtype=reader.text("dtype", "torch_dtype"),
            eos_token_ids=declared_eos_tokens(directory, raw),
        )

    def with_defaults(self, **defaults: Any) -> ConfigFile:
        """With the family's values for keys that are absent."""
        return replace(self, reader=self.reader.with_defaults(defaults))


class ConfigReader:
    """Fields that are null count as absent. Errors name the file, the key and the value."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path = path
        self._raw = raw

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigReader:
        """With values for keys that are absent; a null stays, as in transformers."""
        return ConfigReader(self.path, {**defaults, **self._raw})

    def has(self, key: str) -> bool:
        return self._raw.get(key) is not None

    def has_object(self, key: str) -> bool:
        return isinstance(self._raw.get(key), dict)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            wanted = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
            raise CheckpointError(f"{self.path}: {key} is {value!r}; it must be {wanted}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{self.path}: {key} is {value!r}; it must be a positive number.")
        return float(value)

    def optional_integer(self, key: str) -> int | None:
        return self.integer(key) if self.has(key) else None

    def integers(self, key: str) -> tuple[int, ...]:
        """A list; empty if there is none."""
        values = self._raw.get(key) or []
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise CheckpointError(f"{self.path}: {key} is {values!r}; it must be a list of integers.")
        return tuple(values)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def boolean(self, key: str, default: bool) -> bool:
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} is {value!r}; it must be true or false.")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self._raw.get(key)
        if not isinstance(values, list) or not all(_is_positive(value) for value in values):
            raise CheckpointError(f"{self.path}: {key} is {values!r}; it must be a list of positive numbers.")
        return tuple(float(value) for value in values)

    def names(self, key: str, *, length: int) -> tuple[str, ...] | None:
        """A list of `length` strings; None if there is none."""
        values = self._raw.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != length:
            raise CheckpointError(f"{self.path}: {key} is {values!r}; it must be a list of {length} names.")
        return tuple(str(value) for value in values)

    def object(self, *keys: str) -> ConfigReader:
        """The first of these objects that exists; empty if none does."""
        found: Mapping[str, Any] = next((self._raw[key] for key in keys if self.has_object(key)), {})
        return ConfigReader(self.path, found)

    def text(self, *keys: str) -> str | None:
        return next((str(self._raw[key]) for key in keys if self._raw.get(key) is not None), None)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
