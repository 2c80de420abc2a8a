"""Stored responses: in memory, bounded in number, size and age, each visible to its owner alone.

Eviction takes the least recently used response of the owner that holds the most. So an owner that holds no
more than an equal share loses nothing to the others, and a single owner can fill the store.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MAX_STORED = 1000
MAX_STORED_BYTES = 64 * 2**20
MAX_AGE_S = 24 * 3600.0  # since its last use

Item = Mapping[str, Any]


class UnknownResponse(Exception):
    """There is no such response of this owner."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`items`: the conversation so far, with this response's output."""

    response: Mapping[str, Any]
    items: Sequence[Item]
    num_input_items: int
    num_bytes: int
    used_at: float

    @property
    def input_items(self) -> Sequence[Item]:
        return self.items[: self.num_input_items]


class ResponseStore:
    """The responses of all owners."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._by_owner: dict[str, OwnedResponses] = {}

    def of(self, owner: str) -> OwnedResponses:
        """The responses of one owner."""
        owned = self._by_owner.get(owner)
        if owned is None:
            owned = self._by_owner[owner] = OwnedResponses(self, owner)
        return owned

    def keep(self, owned: OwnedResponses) -> None:
        """It has a response now, and may have been dropped when it had none."""
        self._by_owner[owned.owner] = owned

    def evict(self) -> None:
        """Until the whole is within its limits. A single response can be of any size."""
        oldest = self.clock() - MAX_AGE_S
        for owned in self._by_owner.values():
            owned.drop_unused_since(oldest)
        self._by_owner = {owner: owned for owner, owned in self._by_owner.items() if len(owned)}
        owners = self._by_owner.values()
        while sum(map(len, owners)) > 1:
            if sum(map(len, owners)) > MAX_STORED:
                max(owners, key=len).drop_oldest()
            elif sum(owned.num_bytes for owned in owners) > MAX_STORED_BYTES:
                max(owners, key=lambda owned: owned.num_bytes).drop_oldest()
            else:
                return


class OwnedResponses:
    """The stored responses of one owner, the least recently used first."""

    def __init__(self, store: ResponseStore, owner: str) -> None:
        self.owner = owner
        self._store = store
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, response: Mapping[str, Any], inputs: Sequence[Item], history: Sequence[Item]) -> None:
        """`inputs`: of the request, with ids. `history`: of the responses before it."""
        items = [*history, *inputs, *response["output"]]
        num_bytes = len(json.dumps(response)) + sum(len(json.dumps(item)) for item in items)
        num_input_items = len(history) + len(inputs)
        stored = StoredResponse(response, items, num_input_items, num_bytes, self._store.clock())
        self._remove(response["id"])
        self._stored[response["id"]] = stored
        self.num_bytes += num_bytes
        self._store.keep(self)
        self._store.evict()

    def get(self, name: str) -> StoredResponse:
        """Raises UnknownResponse."""
        stored = self._stored.get(name)
        if stored is None or stored.used_at < self._store.clock() - MAX_AGE_S:
            raise UnknownResponse(
                f"response {name[:80]!r} not found: it was never stored, was deleted, or is too old"
            )
        self._stored[name] = replace(stored, used_at=self._store.clock())
        self._stored.move_to_end(name)
        return stored

    def item(self, item_id: str) -> Item | None:
        """An input or output item of a stored response."""
        for stored in reversed(self._stored.values()):
            for item in stored.items:
                if item.get("id") == item_id:
                    return item
        return None

    def delete(self, name: str) -> None:
        """Raises UnknownResponse."""
        self.get(name)
        self._remove(name)

    def drop_oldest(self) -> None:
        self._remove(next(iter(self._stored)))

    def drop_unused_since(self, oldest: float) -> None:
        while self._stored and next(iter(self._stored.values())).used_at < oldest:
            self.drop_oldest()

    def _remove(self, name: str) -> None:
        stored = self._stored.pop(name, None)
        if stored is not None:
            self.num_bytes -= stored.num_bytes
