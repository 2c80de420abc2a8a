"""The state as the manager uses it: opened once, written in the background, closed at the end."""

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
from instance_manager.state.watch import watch_files
from instance_manager.types import InstanceSpec


class State:
    """Use it inside `async with state.running()`."""

    def __init__(
        self,
        session: StateSession,
        describe: Callable[[str, StateSession], InstanceRecord | None],
        usage: UsageMeter,
        peers: Peers,
    ) -> None:
        """`describe` returns an instance's current record, None once it is deleted."""
        self.session = session
        self.keeper = StateKeeper(session, lambda instance_id: describe(instance_id, session))
        self._usage = usage
        self._peers = peers

    @property
    def store(self) -> StateStore:
        return self.session.store

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Store what happens; on exit write the rest and release the state to the next process."""
        tasks = [
            asyncio.create_task(self.keeper.run(), name="state"),
            asyncio.create_task(self.keeper.watch(), name="state changes"),
            asyncio.create_task(self._usage.run(self.store), name="usage"),
            asyncio.create_task(watch_files(self.session, self.keeper), name="state files"),
        ]
        if self.store.is_shared:
            following = self._peers.run(self.store, self.session.owner)
            tasks.append(asyncio.create_task(following, name="peers"))
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

    async def recover(self, events: EventLog, config: ManagerConfig) -> RecoveredInstances:
        """Recover an earlier process's instances and continue its event ids, before anything is started."""
        last_event_id = max(await self.store.last_event_id(), int(time.time() * 1000))
        events.seed(await self.store.events_since(0, DEFAULT_HISTORY), last_event_id)
        events.add_listener(self.keeper.on_event)
        recovered = await recover_instances(self.session, await self.store.records(), config)
        held = await self._held_ports({one.record.instance_id for one in recovered.instances})
        for one in recovered.instances:
            self.keeper.set_stored(one.record, held.get(one.record.instance_id))
        return recovered

    async def _held_ports(self, ours: Collection[str]) -> dict[str, int]:
        """By instance. Ports held under an earlier node name (a container's, say) are released."""
        held = {}
        for hold in await self.store.ports():
            if hold.instance_id in ours and hold.node == self.session.node:
                held[hold.instance_id] = hold.port
            elif hold.instance_id in ours:
                await self.store.release_port(hold)
        return held

    async def instances_of_peers(self) -> list[tuple[InstanceRecord, bool]]:
        """Other nodes' instances in the order of their creation, and whether each one's node is alive."""
        records = [one for one in await self.store.records() if one.owner != self.session.owner]
        if not records:
            return []
        alive = {one.owner for one in await self.store.owners() if one.is_alive}
        return [(one, one.owner in alive) for one in sorted(records, key=lambda one: one.created_at)]

    async def claim(self, key: str, spec: InstanceSpec, instance_id: str) -> tuple[str, bool]:
        """See `idempotency.claim`."""
        return await claim(self.store, key, spec, instance_id)

    async def forget_claim(self, key: str, instance_id: str) -> None:
        """The key's request has failed: release the key."""
        await self.store.forget_key(key, instance_id)
