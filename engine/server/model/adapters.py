"""The LoRA adapters that requests can use, by name: each is a model of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.core.adapter import Adapter, check_is_free
from engine.core.async_engine import AsyncEngine
from engine.errors import CheckpointError, InvalidRequest
from engine.server.http.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class _Listed:
    adapter: Adapter
    root: str  # the directory's own name, which does not reveal its path
    created: int = field(default_factory=lambda: int(time.time()))  # Unix seconds


class Adapters:
    """Belongs to the event loop. A request keeps its adapter until it ends, whatever happens here."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Listed] = {}
        self._turn = asyncio.Lock()  # one change at a time

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def find(self, name: str | None) -> Adapter | None:
        """None for a name of the model itself."""
        listed = self._by_name.get(name or "")
        return None if listed is None else listed.adapter

    async def load(
        self, engine: AsyncEngine, name: str, path: Path, *, taken: Container[str], in_place: bool = False
    ) -> None:
        """`taken`: the model's own names. Raises InvalidRequest."""
        async with self._turn:
            check_is_free(name, taken=taken, loaded=() if in_place else self._by_name)
            try:
                adapter = await engine.read_adapter(name, path)
            except CheckpointError as error:
                raise InvalidRequest(error.message, param="lora_path") from error
            self._by_name[name] = _Listed(adapter, path.name)

    def unload(self, name: str) -> None:
        """Requests that run finish with it. Raises UnknownModel."""
        if self._by_name.pop(name, None) is None:
            raise UnknownModel(f"The lora adapter {name!r} cannot be found.", param="lora_name")

    def cards(self, base: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Their entries in /v1/models, from the model's own."""
        return [
            {**base, "id": name, "root": listed.root, "parent": base["id"], "created": listed.created}
            for name, listed in self._by_name.items()
        ]
