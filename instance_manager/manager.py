"""Owns the set of instances: creates, finds, expires and leases them. Actions on one are the base class's.

Each instance's own lifecycle is its supervisor's. Knows nothing of the requests that Berth forwards.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from instance_manager.backends.checkpoint import check_can_run
from instance_manager.config import ManagerConfig
from instance_manager.errors import InstanceExists, ManagerError
from instance_manager.events import EventLog
from instance_manager.lifecycle.actions import InstanceActions
from instance_manager.lifecycle.context import SupervisorContext
from instance_manager.lifecycle.expiry import ExpiryLoop
from instance_manager.lifecycle.health import probe_client
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_leases import InstanceLeases, shutting_down
from instance_manager.lifecycle.last_use import LastUse
from instance_manager.lifecycle.manager_events import ManagerEvents
from instance_manager.lifecycle.ports import PortRange
from instance_manager.lifecycle.registry import InstanceRegistry
from instance_manager.lifecycle.shutdown import Shutdown, wait_shielded
from instance_manager.lifecycle.specs import check_idle_timeout, check_spec
from instance_manager.state.peers import Peers
from instance_manager.state.recovery import reap
from instance_manager.state.session import StateSession
from instance_manager.state.store_state import State
from instance_manager.state.stores.errors import PortHeld
from instance_manager.state.usage import UsageMeter
from instance_manager.types import InstanceSpec, InstanceState

logger = logging.getLogger("berth.manager")


class InstanceManager(InstanceActions):
    """Use it inside `async with manager.run()`, and call all methods from that event loop."""

    def __init__(
        self,
        config: ManagerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        events: EventLog | None = None,
    ) -> None:
        self.events = events or EventLog()
        self._to_observer = ManagerEvents()
        super().__init__(config, InstanceRegistry(config, self.events, clock, self._to_observer))
        self._clock = clock
        self._supervisors = self._registry.supervisors
        self._tasks: asyncio.TaskGroup | None = None
        self._context: SupervisorContext | None = None
        self._state: State | None = None
        self._claiming = asyncio.Lock()  # one idempotency key at a time: a repeat finds the instance
        self.usage = UsageMeter()
        self.peers = Peers()
        self.observe = self._to_observer.observe
        self._leases = InstanceLeases(
            self._registry.gates, self._find, self._to_observer, config.start_timeout_cap_s
        )
        self.try_lease = self._leases.try_lease
        self.wait_for_lease = self._leases.wait_for_lease
        self.lease = self._leases.lease
        self.lease_sleeping = self._leases.lease_sleeping
        self._shutdown = Shutdown(config, self._registry, self._leases, self.events, self._to_observer)
        self.begin_shutdown = self._shutdown.begin

    # Lifetime.

    async def prepare(self) -> None:
        """Open the state early, so that its errors are reported first. Otherwise `run` opens it.

        Raises StoreUnavailable, StoreInUse or InvalidStateUrl.
        """
        session = await StateSession.open(self.config)
        self._state = State(session, self._registry.describe, self.usage, self.peers)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run the supervisors and the expiry loop, after recovering a previous Berth process's instances.

        On exit all engines' process trees are ended, or left to the next Berth process. Raises what `prepare`
        raises.
        """
        if self._state is None:
            await self.prepare()
        ports = PortRange(self.config.host, self.config.base_port, self.config.max_instances)
        expiry = ExpiryLoop(
            self._supervisors, self.events, self._clock, expire_action=self.config.expire_action
        )
        self._last_use = LastUse(self._registry.gates, self.state.keeper.mark)
        error: BaseException | None = None
        async with self.state.running(), probe_client() as client, asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._context = SupervisorContext(
                self.config, ports, client, self.state.keeper, self.state.session.new_token
            )
            stop_expiry = expiry.start(tasks)
            try:
                await self._recover(tasks, self._context)
                self._last_use.start(tasks)
                yield
            except BaseException as body_error:  # raised again below, so that no task group wraps it
                error = body_error
            await wait_shielded(self.begin_shutdown())
            stop_expiry()
            self._last_use.stop()
        if error is not None:
            raise error

    async def _recover(self, tasks: asyncio.TaskGroup, context: SupervisorContext) -> None:
        """Restore the instances of a previous Berth process, and end processes that belong to none."""
        recovered = await self.state.recover(self.events, self.config)
        tasks.create_task(reap(recovered.orphans, recovered.orphaned_files), name="reaping")
        for instance in recovered.instances:
            await self._registry.recover(instance, context, tasks)
        if (sweep := self._registry.leftover_containers(self.state.session)) is not None:
            tasks.create_task(sweep, name="containers of earlier runs")

    async def shutdown(self, *, drain_timeout_s: float | None = None) -> None:
        """Refuse new requests, drain, and end all engines in parallel; returns when they are gone.

        Takes little more than the drain time plus STOP_GRACE at most. A second call waits for the same
        shutdown and can shorten the drain time.
        """
        await asyncio.shield(self.begin_shutdown(drain_timeout_s=drain_timeout_s))

    @property
    def is_shutting_down(self) -> bool:
        return self._shutdown.has_begun

    def check_accepts_requests(self) -> None:
        """Raises ShuttingDown."""
        if self.is_shutting_down:
            raise shutting_down()

    @property
    def state(self) -> State:
        """The stored state. Only inside `run`."""
        if self._state is None:
            raise RuntimeError("the manager was used outside `async with manager.run()`")
        return self._state

    # The set of instances.

    @property
    def has_free_slot(self) -> bool:
        """Whether another instance can start: one of the VLLM_MAX_INSTANCES ports is free."""
        ports = None if self._context is None else self._context.ports
        return ports is not None and len(ports.held) < self.config.max_instances and ports.has_free

    @property
    def why_no_free_slot(self) -> str:
        """The reason, for an error message."""
        return "" if self._context is None else self._context.ports.refusal

    async def create_once(self, spec: InstanceSpec, idempotency_key: str | None = None) -> Instance:
        """Like `create`, and returns once the instance is stored. A key gives the same instance for a day.

        Raises LeaseLost, and StoreUnavailable if a key can't be stored, besides what `create` raises.
        """
        self._running_context()
        state = self.state
        state.keeper.check_is_owner()
        if idempotency_key is None:
            return await self._persisted(self.create(spec))
        check_spec(spec)
        async with self._claiming:
            new_id = spec.name or self._registry.unused_id(spec.model_name)
            instance_id, is_new = await state.claim(idempotency_key, spec, new_id)
            if not is_new and instance_id in self._supervisors:
                return self._supervisors[instance_id].instance
            try:
                return await self._persisted(self.create(spec, instance_id=instance_id))
            except ManagerError:
                await state.forget_claim(idempotency_key, instance_id)
                raise

    async def _persisted(self, instance: Instance) -> Instance:
        """Wait until the store has it. Raises InstanceExists if another node has an instance of this id."""
        try:
            await self.state.keeper.written(instance.instance_id)
        except InstanceExists:
            await self.delete(instance.instance_id, force=True)
            raise
        except PortHeld:
            logger.info(
                "instance=%s will use another port: another node holds its port", instance.instance_id
            )
        return instance

    def create(self, spec: InstanceSpec, *, instance_id: str | None = None) -> Instance:
        """Create an instance in `starting` and start it in the background; without an id, generate one.

        Raises InstanceExists, InvalidSpec, ModelNotFound, UnsupportedModel, NoCapacity or ShuttingDown.
        """
        tasks, context = self._running_context()
        check_spec(spec)
        check_can_run(spec, self.config)
        return self._registry.add(spec, instance_id or spec.name, context, tasks)

    def get(self, instance_id: str) -> Instance:
        """Raises InstanceNotFound."""
        return self._find(instance_id).instance

    def list(
        self,
        *,
        status: InstanceState | str | None = None,
        model: str | None = None,
        include_terminal: bool = False,
    ) -> builtins.list[Instance]:
        """Instances in order of creation; stopped and failed ones only if requested."""
        return [
            instance
            for instance in (supervisor.instance for supervisor in self._supervisors.values())
            if (status is None or instance.state == status)
            and (model is None or model in (instance.model_name, instance.served_model_name))
            and (include_terminal or status is not None or not instance.state.is_terminal)
        ]

    def patch(
        self, instance_id: str, *, idle_timeout_s: float | None = None, pinned: bool | None = None
    ) -> Instance:
        """Change the fields that are not None. Raises InstanceNotFound or InvalidSpec."""
        instance = self.get(instance_id)
        if idle_timeout_s is not None:
            check_idle_timeout(idle_timeout_s)
        instance.set_policy(idle_timeout_s, pinned)
        return instance

    def check_sleep(self, instance_id: str) -> None:
        """Its engine may have been put to sleep: ask it, in the background."""
        supervisor = self._supervisors.get(instance_id)
        if supervisor is not None and self._tasks is not None and not self.is_shutting_down:
            self._tasks.create_task(supervisor.sleep.check_sleep(), name=f"sleep check of {instance_id}")

    def _running_context(self) -> tuple[asyncio.TaskGroup, SupervisorContext]:
        self.check_accepts_requests()
        if self._tasks is None or self._context is None:
            raise RuntimeError("the manager was used outside `async with manager.run()`")
        return self._tasks, self._context
