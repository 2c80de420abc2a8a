"""Usage by API key and model: collected here for some seconds, then added to the store."""

from __future__ import annotations

import asyncio
import logging

from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.errors import StoreError
from instance_manager.state.stores.records import Usage, Write

logger = logging.getLogger("berth.state")

_FLUSH_INTERVAL_S = 2.0


class UsageMeter:
    """`add` at any time; `run` while a store is open. A killed process loses what it had not stored yet."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str], Usage] = {}
        self._sending: Write | None = None  # unconfirmed; resent unchanged, so that it counts once
        self._is_failing = False

    def add(
        self,
        key_id: str,
        model: str,
        requests: int = 1,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> None:
        """Count requests that have ended. `key_id` is the key's public id, never the key itself."""
        used = Usage(key_id, model).plus(Usage(key_id, model, requests, prompt_tokens, completion_tokens))
        before = self._pending.get((key_id, model))
        self._pending[key_id, model] = used if before is None else before.plus(used)

    async def totals(self, store: StateStore) -> list[Usage]:
        """Stored plus pending usage, by key id and model. Raises StoreUnavailable."""
        totals = {(one.key_id, one.model): one for one in await store.usage()}
        sending = self._sending.usage if self._sending is not None else ()
        for used in (*sending, *self._pending.values()):
            key = (used.key_id, used.model)
            totals[key] = totals[key].plus(used) if key in totals else used
        return [totals[key] for key in sorted(totals)]

    async def run(self, store: StateStore) -> None:
        """Store pending usage every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL_S)
            await self.flush(store)

    async def flush(self, store: StateStore) -> None:
        """Store pending usage; if that fails, keep it for the next time."""
        try:
            while self._sending is not None or self._pending:
                if self._sending is None:
                    self._sending = Write(usage=tuple(self._pending.values()))
                    self._pending = {}
                await store.commit(self._sending)
                self._sending, self._is_failing = None, False
        except StoreError as error:
            if not self._is_failing:
                logger.warning("usage can't be stored for now: %s", error)
            self._is_failing = True
