"""The definition of a model that clients request by name: how to start it, and how many replicas. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from instance_manager.backends.params import adapter_names
from instance_manager.types import ReplicaOptions


class ModelSource(StrEnum):
    """Where a profile comes from."""

    CATALOG = "catalog"  # models.yaml
    DISCOVERED = "discovered"  # found in MODEL_DIRS or the hub's cache


@dataclass(frozen=True, slots=True)
class ModelProfile(ReplicaOptions):
    """A model of the catalog, or one that was found on disk. None = the manager's default."""

    name: str  # what clients send in `model`
    model: str  # what the engine loads: a folder or a hub id
    engine: str  # the name of a back end
    source: ModelSource = ModelSource.CATALOG
    params: Mapping[str, Any] = field(default_factory=dict)  # the engine's flags in snake_case
    aliases: tuple[str, ...] = ()
    idle_timeout_s: float | None = None  # 0 = never
    min_replicas: int = 0
    max_replicas: int = 1
    protocol: str | None = None  # the name of a protocol adapter; None = OpenAI's
    set_params: Mapping[str, Any] = field(default_factory=dict)  # put into each request's body
    strip_params: frozenset[str] = frozenset()  # taken out of each request's body
    preload: bool = False  # start with Berth
    size_bytes: int | None = None  # of the files, where they were found on disk
    modified: float | None = None  # seconds since the epoch, likewise
    description: Mapping[str, Any] | None = None  # what a GGUF file says of its model

    @property
    def other_names(self) -> tuple[str, ...]:
        """Other names that clients can use: aliases, and the adapters that its engines are started with."""
        return tuple(dict.fromkeys((*self.aliases, *adapter_names(self.params))))
