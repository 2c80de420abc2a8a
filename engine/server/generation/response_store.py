"""Responses that may be asked for again: in memory, bounded, each found by the tenant alone that made it.

Whoever holds the most gives way: its least recently used response goes first. So nobody who holds less than
an equal share loses anything to the others, and who is alone may fill the store.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from engine.server.http.errors import UnknownItem, UnknownResponse

MAX_STORED = 1000
MAX_STORED_BYTES = 64 * 2**20


@dataclass(slots=True)
class StoredResponse:
    response: dict[str, Any]
    items: list[Any]  # the conversation up to here, this response's output included
    num_input: int  # of them that came before the output
    by_id: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0
    is_deleted: bool = False  # by its client: it doesn't come back, though it may still be in the making
    task: asyncio.Task[None] | None = None  # that makes it, if it is made in the background


class ResponseStore:
    """All tenants' responses, within the bounds of the whole."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, TenantResponses] = {}

    def of(self, tenant: str) -> TenantResponses:
        """Those of one tenant, by its name."""
        responses = self._by_tenant.get(tenant)
        if responses is None:
            responses = self._by_tenant[tenant] = TenantResponses(self)
        return responses

    def make_room(self) -> None:
        """Bring the whole within its bounds. A response that nobody stands beside may be as long as it is."""
        tenants = self._by_tenant.values()
        while sum(map(len, tenants)) > 1:
            if sum(map(len, tenants)) > MAX_STORED:
                max(tenants, key=len).forget_oldest()
            elif sum(responses.num_bytes for responses in tenants) > MAX_STORED_BYTES:
                max(tenants, key=lambda responses: responses.num_bytes).forget_oldest()
            else:
                return


class TenantResponses:
    """What one tenant has stored; to it there is nothing else."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, stored: StoredResponse) -> None:
        """Keep one, or what has become of it."""
        if stored.is_deleted:
            return
        name = stored.response["id"]
        self._forget(name)
        stored.by_id = {item.id: item for item in stored.items}
        stored.num_bytes = len(json.dumps(stored.response)) + sum(
            len(item.model_dump_json()) for item in stored.items
        )
        self._stored[name] = stored
        self.num_bytes += stored.num_bytes
        self._store.make_room()

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
        stored = self.get(name)
        stored.is_deleted = True
        if stored.task is not None:
            stored.task.cancel()
        self._forget(name)

    def forget_oldest(self) -> None:
        """Give way by the response that was used longest ago."""
        self._forget(next(iter(self._stored)))

    def _forget(self, name: str) -> None:
        stored = self._stored.pop(name, None)
        if stored is not None:
            self.num_bytes -= stored.num_bytes
