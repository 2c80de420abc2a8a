"""Responses that may be asked for again: in memory, bounded, the least recently used go first."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from engine.server.errors import UnknownItem, UnknownResponse

MAX_STORED = 1000
MAX_STORED_BYTES = 64 * 2**20


@dataclass(slots=True)
class StoredResponse:
    response: dict[str, Any]
    items: list[Any]  # the conversation up to here, this response's output included
    num_input: int  # of them that came before the output
    by_id: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0
    task: asyncio.Task[None] | None = None  # that makes it, if it is made in the background


class ResponseStore:
    def __init__(self) -> None:
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def put(self, stored: StoredResponse) -> None:
        """Keep one, or what has become of it."""
        name = stored.response["id"]
        self._forget(name)
        stored.by_id = {item.id: item for item in stored.items}
        stored.num_bytes = len(json.dumps(stored.response)) + sum(
            len(item.model_dump_json()) for item in stored.items
        )
        self._stored[name] = stored
        self._num_bytes += stored.num_bytes
        while len(self._stored) > 1 and (
            len(self._stored) > MAX_STORED or self._num_bytes > MAX_STORED_BYTES
        ):
            self._forget(next(iter(self._stored)))

    def get(self, name: str, param: str | None = None) -> StoredResponse:
        """Raises UnknownResponse."""
        stored = self._stored.get(name)
        if stored is None:
            raise UnknownResponse(
                f"There is no response {name!r}: never stored, deleted, or given way to newer ones.",
                param=param,
            )
        self._stored.move_to_end(name)
        return stored

    def get_item(self, item_id: str, param: str) -> Any:
        """An item of a stored response, of its input or its output. Raises UnknownItem."""
        for name in reversed(list(self._stored)):  # other threads may look, too
            item = self._stored[name].by_id.get(item_id)
            if item is not None:
                self._stored.move_to_end(name)
                return item
        raise UnknownItem(
            f"There is no item {item_id!r}: its response was never stored, is deleted, or has given way to "
            "newer ones. Send the item itself.",
            param=param,
        )

    def delete(self, name: str) -> None:
        """Raises UnknownResponse. One that is still being made is ended."""
        task = self.get(name).task
        if task is not None:
            task.cancel()
        self._forget(name)

    def _forget(self, name: str) -> None:
        stored = self._stored.pop(name, None)
        if stored is not None:
            self._num_bytes -= stored.num_bytes
