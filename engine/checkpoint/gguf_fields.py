"""The numbers and texts that a GGUF file has as metadata, checked. Knows nothing of torch."""

from __future__ import annotations

import math
from array import array
from typing import Any

from engine.checkpoint.gguf_file import GGUFFile
from engine.errors import CheckpointError

Config = dict[str, Any]
"""config.json's content."""


class Fields:
    """Typed access to a file's metadata; errors name the file and the key."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._prefix = f"{self.text('general.architecture')}."

    def text(self, key: str) -> str:
        value = self.file.metadata.get(key)
        if not isinstance(value, str):
            raise self._error(key, value, "text")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer, or one for each layer if they are all the same."""
        value = self._value(key, default)
        if isinstance(value, array | list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._error(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self._error(key, value, "a positive number")
        return float(f"{value:.7g}")  # the digits of a float32: 1e-06 and not 9.9999999e-07

    def optional(self, key: str) -> Any:
        return self.file.metadata.get(f"{self._prefix}{key}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.optional(key)
        return default if value is None else value

    def _error(self, key: str, value: Any, kind: str) -> CheckpointError:
        shown = "an array" if isinstance(value, array | list) else repr(value)
        return CheckpointError(f"{self.file.path}: {key} is {shown}; it must be {kind}.")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name, or a value other than 0 under this key."""
        return name in self.file.tensors or bool(self.optional(name))

    def rows(self, tensor: str) -> int:
        """Raises CheckpointError if there is no such tensor."""
        if tensor not in self.file.tensors:
            raise CheckpointError(f"{self.file.path} has no tensor {tensor}.")
        return self.file.tensors[tensor].shape[0]
