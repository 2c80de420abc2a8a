"""The state as the manager uses it: opened once, written behind its back, closed at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from instance_manager.config import ManagerConfig
from instance_manager.events import EventLog
from instance_manager.state.idempotency import claim
from instance_manager.state.keeper import StateKeeper
from instance_manager.state.peers import Peers
from instance_manager.state.recovery import RecoveredInstances, recover_instances
from instance_manager.state.session import StateSession
from instance_manager.state.stores.base import DEFAULT_HISTORY, StateStore
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.state.usage import UsageMeter
from instance_manager.state.watch import watch_over
from instance_manager.types import InstanceSpec


class State:
    """Made of a session; use it inside `async with state.running()`."""

    def __init__(
        self,
        session: StateSession,
        describe: Callable[[str, StateSession], InstanceRecord | None],
        usage: UsageMeter,
        neighbours: Peers,
    ) -> None:
        """`describe` gives an instance's record as it is now, None once it is deleted."""
        self.session = session
        self.keeper = StateKeeper(session, lambda instance_id: describe(instance_id, session))
        self._usage = usage
        self._neighbours = neighbours

    @property
    def store(self) -> StateStore:
        return self.session.store

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write what happens; at the end what is left, and then let the next Berth in."""
        tasks = [
            asyncio.create_task(self.keeper.run(), name="state"),
            asyncio.create_task(self.keeper.watch(), name="changes of the state"),
            asyncio.create_task(self._usage.run(self.store), name="usage"),
            asyncio.create_task(watch_over(self.session, self.keeper), name="files of the state"),
        ]
        if self.store.is_shared:
            looking = self._neighbours.run(self.store, self.session.owner)
            tasks.append(asyncio.create_task(looking, name="other Berths"))
        try:
            yield
            await self.keeper.finish()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            try:
                await self._usage.flush(self.store)
            finally:
                await self.session.close()

    async def take_in(self, events: EventLog, config: ManagerConfig) -> RecoveredInstances:
        """What an earlier Berth has left; its events are gone on with. Before anything is started."""
        last_event_id = max(await self.store.last_event_id(), int(time.time() * 1000))
        events.seed(await self.store.events_since(0, DEFAULT_HISTORY), last_event_id)
        events.add_listener(self.keeper.on_event)
        leftovers = await recover_instances(self.session, await self.store.records(), config)
        held = await self._held_ports({one.record.instance_id for one in leftovers.instances})
        for one in leftovers.instances:
            self.keeper.know(one.record, held.get(one.record.instance_id))
        return leftovers

    async def _held_ports(self, ours: Collection[str]) -> dict[str, int]:
        """By instance; what we held under an earlier name of this machine, a container's, is given back."""
        held = {}
        for hold in await self.store.ports():
            if hold.instance_id in ours and hold.node == self.session.node:
                held[hold.instance_id] = hold.port
            elif hold.instance_id in ours:
                await self.store.release_port(hold)
        return held

    async def elsewhere(self) -> list[tuple[InstanceRecord, bool]]:
        """Other Berths' instances, in the order of their creation, and whether each one's Berth is alive."""
        records = [one for one in await self.store.records() if one.owner != self.session.owner]
        if not records:
            return []
        alive = {one.owner for one in await self.store.owners() if one.is_alive}
        return [(one, one.owner in alive) for one in sorted(records, key=lambda one: one.created_at)]

    async def claim(self, key: str, spec: InstanceSpec, instance_id: str) -> tuple[str, bool]:
        """See `idempotency.claim`."""
        return await claim(self.store, key, spec, instance_id)

    async def forget_claim(self, key: str, instance_id: str) -> None:
        """The key's request has come to nothing."""
        await self.store.forget_key(key, instance_id)
