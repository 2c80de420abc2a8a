"""Which engines models.yaml and DEFAULT_ENGINE may name. Knows none: composition/ hands the names down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AUTO = "auto"  # in place of a name: Berth chooses


@dataclass(frozen=True, slots=True)
class EngineKinds:
    """The engine kinds that there are."""

    names: tuple[str, ...]
    by_command: str | None = None  # the one that runs the `command` of a model's entry

    @property
    def for_models(self) -> tuple[str, ...]:
        """What a model's entry may say."""
        return AUTO, *self.names

    @property
    def for_default(self) -> tuple[str, ...]:
        """What the setting may say: a kind that needs nothing but a model."""
        return AUTO, *(name for name in self.names if name != self.by_command)


def one_of(choices: Sequence[str]) -> str:
    """`'a', 'b' or 'c'`, as pydantic writes them."""
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last
