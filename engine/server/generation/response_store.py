"""Stored responses: in memory, bounded, each visible only to the tenant that created it.

Eviction takes the least recently used response of the tenant that holds the most. So a tenant that holds no
more than an equal share loses nothing to the others, and a single tenant can fill the store.
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
    items: list[Any]  # the conversation so far, including this response's output
    num_input_items: int  # those before the output
    by_id: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0
    is_deleted: bool = False  # by its client: it is not stored again, although it can still be running
    task: asyncio.Task[None] | None = None  # that generates it, if in the background


class ResponseStore:
    """The responses of all tenants, within a total limit."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, TenantResponses] = {}

    def of(self, tenant: str) -> TenantResponses:
        """The responses of one tenant, by its name."""
        responses = self._by_tenant.get(tenant)
        if responses is None:
            responses = self._by_tenant[tenant] = TenantResponses(self)
        return responses

    def evict(self) -> None:
        """Evict until the total is within the limits. A single response can be of any size."""
        tenants = self._by_tenant.values()
        while sum(map(len, tenants)) > 1:
            if sum(map(len, tenants)) > MAX_STORED:
                max(tenants, key=len).evict_oldest()
            elif sum(responses.num_bytes for responses in tenants) > MAX_STORED_BYTES:
                max(tenants, key=lambda responses: responses.num_bytes).evict_oldest()
            else:
                return


class TenantResponses:
    """The stored responses of one tenant; it sees no others."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, stored: StoredResponse) -> None:
        """Store or update a response."""
        if stored.is_deleted:
            return
        name = stored.response["id"]
        self._remove(name)
        stored.by_id = {item.id: item for item in stored.items}
        stored.num_bytes = len(json.dumps(stored.response)) + sum(
            len(item.model_dump_json()) for item in stored.items
        )
        self._stored[name] = stored
        self.num_bytes += stored.num_bytes
        self._store.evict()

    def get(self, name: str, param: str | None = None) -> StoredResponse:
        """Raises UnknownResponse."""
        stored = self._stored.get(name)
        if stored is None:
            raise UnknownResponse(
                f"Response {name!r} not found: it was never stored, or was deleted or evicted by newer ones.",
                param=param,
            )
        self._stored.move_to_end(name)
        return stored

    def get_item(self, item_id: str, param: str) -> Any:
        """An input or output item of a stored response. Raises UnknownItem."""
        for name in reversed(list(self._stored)):  # other threads may read at the same time
            item = self._stored[name].by_id.get(item_id)
            if item is not None:
                self._stored.move_to_end(name)
                return item
        raise UnknownItem(
            f"Item {item_id!r} not found: its response was never stored, or was deleted or evicted by newer "
            "ones. Send the item itself.",
            param=param,
        )

    def delete(self, name: str) -> None:
        """Cancels a response that is still running. Raises UnknownResponse."""
        stored = self.get(name)
        stored.is_deleted = True
        if stored.task is not None:
            stored.task.cancel()
        self._remove(name)

    def evict_oldest(self) -> None:
        """Remove the least recently used response."""
        self._remove(next(iter(self._stored)))

    def _remove(self, name: str) -> None:
        stored = self._stored.pop(name, None)
        if stored is not None:
            self.num_bytes -= stored.num_bytes
