"""The one owner of the set of instances: create, find, stop, expire, lease.

What happens to a single instance is its supervisor's business; what happens between Berth and an engine's
HTTP is not known here at all.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from instance_manager.config import ManagerConfig, OnShutdown
from instance_manager.errors import (
    InstanceExists,
    InvalidSpec,
    ManagerError,
    SleepFailed,
)
from instance_manager.events import EventLog
from instance_manager.lifecycle.context import Dock
from instance_manager.lifecycle.expiry import Housekeeping
from instance_manager.lifecycle.health import probe_client
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_leases import LeaseDesk, shutting_down
from instance_manager.lifecycle.ports import PortRange
from instance_manager.lifecycle.registry import Register
from instance_manager.lifecycle.shutdown import all_ended, request_detach, request_end, to_its_end
from instance_manager.lifecycle.sleeping import SLEEP_LEVELS
from instance_manager.lifecycle.specs import check_spec, check_timeout
from instance_manager.memory.checkpoint import check_can_run
from instance_manager.state.peers import Peers
from instance_manager.state.recovery import reap
from instance_manager.state.session import StateSession
from instance_manager.state.store_state import State
from instance_manager.state.stores.errors import PortHeld
from instance_manager.state.usage import UsageMeter
from instance_manager.types import InstanceSpec, InstanceState

logger = logging.getLogger("berth.manager")


class InstanceManager:
    """Use it inside `async with manager.run()`; all methods belong to that event loop."""

    def __init__(
        self,
        config: ManagerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        events: EventLog | None = None,
    ) -> None:
        self.config = config
        self.events = events or EventLog()
        self._clock = clock
        self._books = Register(config, self.events, clock)
        self._supervisors = self._books.supervisors
        self._find = self._books.find
        self._tasks: asyncio.TaskGroup | None = None
        self._dock: Dock | None = None
        self._state: State | None = None
        self._claiming = asyncio.Lock()  # one key after the other: its instance is there when the next asks
        self.usage = UsageMeter()
        self.peers = Peers()
        self._shutdown: asyncio.Task[None] | None = None
        self._desk = LeaseDesk(
            self._books.gates, self._find, lambda one: self.on_wanted(one), config.start_timeout_cap_s
        )
        self.try_lease = self._desk.try_lease
        self.wait_for_lease = self._desk.wait_for_lease
        self.lease = self._desk.lease
        self.lease_asleep = self._desk.lease_asleep
        # Told when a request comes for an instance that sleeps. Whoever budgets memory takes its place.
        self.on_wanted: Callable[[Instance], None] = lambda one: self._find(one.instance_id).request_wake()

        self.on_created: Callable[[Instance], None] = lambda _: None
        self.on_shutdown: Callable[[], None] = lambda: None  # it has begun: who waits elsewhere is to be told

    # Lifetime.

    async def prepare(self) -> None:
        """Open the state, which `run` does otherwise: what is wrong with it is to be told before all else.

        Raises StoreUnavailable, StoreInUse or InvalidStateUrl.
        """
        session = await StateSession.open(self.config)
        self._state = State(session, self._books.describe, self.usage, self.peers)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Own the supervisors and the housekeeping, and take over what an earlier Berth has left.

        On exit every engine's whole tree is ended, or left to the next Berth. Raises what `prepare` does.
        """
        if self._state is None:
            await self.prepare()
        ports = PortRange(self.config.host, self.config.base_port, self.config.max_instances)
        housekeeping = Housekeeping(
            self._supervisors, self.events, self._clock, expire_action=self.config.expire_action
        )
        error: BaseException | None = None
        async with self.state.running(), probe_client() as client, asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._dock = Dock(self.config, ports, client, self.state.keeper, self.state.session.new_token)
            end_housekeeping = housekeeping.begin(tasks)
            try:
                await self._take_over(tasks, self._dock)
                yield
            except BaseException as body_error:  # raised again below, so that no task group wraps it
                error = body_error
            await to_its_end(self.begin_shutdown())
            end_housekeeping()
        if error is not None:
            raise error

    async def _take_over(self, tasks: asyncio.TaskGroup, dock: Dock) -> None:
        """Every instance of an earlier Berth; what nobody knows any more is ended."""
        leftovers = await self.state.recover(self.events, self.config)
        tasks.create_task(reap(leftovers.orphans, leftovers.status_files), name="reaping")
        for leftover in leftovers.instances:
            self.on_created(await self._books.enter_again(leftover, dock, tasks))

    async def shutdown(self, *, drain_timeout_s: float | None = None) -> None:
        """Refuse everything new, drain, and end all engines in parallel; returns when they are gone.

        Takes at most the drain time plus STOP_GRACE and a little. A further call waits for the same end,
        and may shorten the drain time.
        """
        await asyncio.shield(self.begin_shutdown(drain_timeout_s=drain_timeout_s))

    def begin_shutdown(self, *, drain_timeout_s: float | None = None) -> asyncio.Task[None]:
        """Accept nothing new from now on, refuse who waits, let go who follows events or logs; drain and end.

        The task returned is done when all engines are gone. Drain time None = DRAIN_TIMEOUT, or what
        an earlier call said.
        """
        if self._shutdown is None or drain_timeout_s is not None:
            drain_s = self.config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
            self._desk.is_closed = self._books.is_closing = True
            self.on_shutdown()
            end = request_detach if self.config.on_shutdown is OnShutdown.DETACH else request_end
            ending = [(s, end(s, drain_s)) for s in self._supervisors.values()]
            self.events.close()
            if self._shutdown is None:
                self._shutdown = asyncio.create_task(all_ended(ending), name="shutdown")
        return self._shutdown

    @property
    def is_shutting_down(self) -> bool:
        return self._desk.is_closed

    def check_takes_requests(self) -> None:
        """Raises ShuttingDown."""
        if self.is_shutting_down:
            raise shutting_down()

    @property
    def state(self) -> State:
        """What is kept; inside `run`."""
        if self._state is None:
            raise RuntimeError("the manager is used outside of `async with manager.run()`")
        return self._state

    # The set of instances.

    @property
    def has_free_slot(self) -> bool:
        """Whether another instance may have a process: a port is free, of as many as VLLM_MAX_INSTANCES."""
        ports = None if self._dock is None else self._dock.ports
        return ports is not None and len(ports.held) < self.config.max_instances and ports.has_free

    @property
    def why_no_free_slot(self) -> str:
        """For the person who reads it."""
        return "" if self._dock is None else self._dock.ports.refusal

    async def create_once(self, spec: InstanceSpec, idempotency_key: str | None = None) -> Instance:
        """As `create`, and kept when this returns. The same key gives the same instance, for a day.

        Raises StoreUnavailable, too, where a key can't be kept, and LeaseLost.
        """
        self._open_for_business()
        state = self.state
        state.keeper.check_is_owner()
        if idempotency_key is None:
            return await self._kept(self.create(spec))
        check_spec(spec)
        async with self._claiming:
            wanted_id = spec.name or self._books.free_id(spec.model_name)
            instance_id, is_new = await state.claim(idempotency_key, spec, wanted_id)
            if not is_new and instance_id in self._supervisors:
                return self._supervisors[instance_id].instance
            try:
                return await self._kept(self.create(spec, instance_id=instance_id))
            except ManagerError:
                await state.forget_claim(idempotency_key, instance_id)
                raise

    async def _kept(self, instance: Instance) -> Instance:
        """Wait until the store has it. Raises InstanceExists if another Berth has one of this id."""
        try:
            await self.state.keeper.written(instance.instance_id)
        except InstanceExists:
            await self.delete(instance.instance_id, force=True)
            raise
        except PortHeld:
            logger.info("instance=%s takes another port", instance.instance_id)
        return instance

    def create(self, spec: InstanceSpec, *, instance_id: str | None = None) -> Instance:
        """A new instance in `starting`; its start goes on by itself. An id is made unless one is given.

        Raises InstanceExists, InvalidSpec, ModelNotFound, UnsupportedModel, NoCapacity or ShuttingDown.
        """
        tasks, dock = self._open_for_business()
        check_spec(spec)
        check_can_run(spec, self.config)
        instance = self._books.enter(spec, instance_id or spec.name, dock, tasks)
        self.on_created(instance)
        return instance

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
        """Instances in the order of their creation; stopped and failed ones only if asked for."""
        return [
            instance
            for instance in (supervisor.instance for supervisor in self._supervisors.values())
            if (status is None or instance.state == status)
            and (model is None or model in (instance.model_name, instance.served_model_name))
            and (include_terminal or status is not None or not instance.state.is_terminal)
        ]

    def patch(
        self, instance_id: str, *, timeout_s: float | None = None, pinned: bool | None = None
    ) -> Instance:
        """Change what is not None. Raises InstanceNotFound or InvalidSpec."""
        instance = self.get(instance_id)
        if timeout_s is not None:
            check_timeout(timeout_s)
            instance.timeout_s = timeout_s
        if pinned is not None:
            instance.pinned = pinned
        self.events.publish(
            "instance.updated", instance_id, {"timeout": instance.timeout_s, "pinned": instance.pinned}
        )
        return instance

    # Lifecycle verbs. Cancelling a caller never cancels the work.

    async def wait_ready(self, instance_id: str, timeout_s: float) -> Instance:
        """Return when the instance is running, failed or stopped, or when the time is out, as it then is."""
        supervisor = self._find(instance_id)
        instance = supervisor.instance
        try:
            async with asyncio.timeout(timeout_s):
                while not supervisor.is_settled:
                    await instance.changed()
        except TimeoutError:
            pass
        return instance

    async def stop(
        self,
        instance_id: str,
        *,
        force: bool = False,
        patient: bool = False,
        reason: str = "stopped by request",
    ) -> Instance:
        """Drain (unless `force`; if `patient`, as long as it takes), end the process group, and return."""
        supervisor = self._find(instance_id)
        drain_timeout_s = math.inf if patient else self._drain_time(force)
        await supervisor.ended(supervisor.request_stop(reason, drain_timeout_s=drain_timeout_s))
        await self.state.keeper.settled(instance_id)
        return supervisor.instance

    def start(self, instance_id: str) -> Instance:
        """Begin anew from stopped or failed. Raises WrongState, NoCapacity or ShuttingDown."""
        self._open_for_business()
        supervisor = self._find(instance_id)
        supervisor.request_start()
        return supervisor.instance

    async def restart(self, instance_id: str) -> Instance:
        """Drain and end the present process and begin another; returns in `starting`.

        Requests that come meanwhile wait for the new one. From stopped or failed it is a start.
        """
        self._open_for_business()
        supervisor = self._find(instance_id)
        if supervisor.instance.state.is_terminal and not supervisor.wants_running:
            supervisor.request_start()
        else:
            life = supervisor.request_restart()
            await supervisor.ended(life)
        return supervisor.instance

    async def sleep(self, instance_id: str, level: int = 1) -> Instance:
        """Drain and give memory back; returns when it is done. Raises InvalidSpec, WrongState or NotAsleep.

        A request that comes wakes it again.
        """
        if level not in SLEEP_LEVELS:
            raise InvalidSpec(f"level must be 1 or 2, not {level}", param="level")
        supervisor = self._find(instance_id)
        supervisor.request_sleep(level)
        while supervisor.wants_running and not supervisor.is_settled:
            await supervisor.instance.changed()
        if supervisor.sleep_error is not None:
            raise SleepFailed(f"instance {instance_id!r} didn't go to sleep: {supervisor.sleep_error}")
        await self.state.keeper.settled(instance_id)
        return supervisor.instance

    def is_asleep(self, instance_id: str) -> bool:
        """Whether it sleeps, or is about to, and can be woken. Raises InstanceNotFound."""
        supervisor = self._find(instance_id)
        return supervisor.wants_running and supervisor.is_asleep

    def is_being_deleted(self, instance_id: str) -> bool:
        """Whether it is there for some moments yet. Raises InstanceNotFound."""
        return self._find(instance_id).is_being_deleted

    async def wake(self, instance_id: str) -> Instance:
        """Serve again; returns when it does, or has failed. Raises WrongState."""
        self._open_for_business()
        supervisor = self._find(instance_id)
        supervisor.request_wake()
        while supervisor.wants_running and not supervisor.is_settled:
            await supervisor.instance.changed()
        return supervisor.instance

    def note_asleep(self, instance_id: str, level: int) -> None:
        """Its engine was put to sleep by its own route. Nothing for an instance that isn't there any more."""
        if (supervisor := self._supervisors.get(instance_id)) is not None:
            supervisor.note_asleep(level)

    def look_at_sleep(self, instance_id: str) -> None:
        """Its engine may have been: it is asked."""
        supervisor = self._supervisors.get(instance_id)
        if supervisor is not None and self._tasks is not None and not self.is_shutting_down:
            self._tasks.create_task(supervisor.look_at_sleep(), name=f"look at sleep of {instance_id}")

    async def delete(self, instance_id: str, *, force: bool = False) -> None:
        """Stop, then forget the instance and its log."""
        supervisor = self._find(instance_id)
        supervisor.request_stop("deleted by request", drain_timeout_s=self._drain_time(force), delete=True)
        while not supervisor.is_forgotten:
            await supervisor.instance.changed()
        await self.state.keeper.settled(instance_id)

    def _drain_time(self, force: bool) -> float:
        return 0.0 if force else self.config.drain_timeout_s

    # Logs.

    def read_log(self, instance_id: str, tail: int) -> builtins.list[str]:
        """The last `tail` lines the engine wrote, as far as the ring reaches."""
        return self._find(instance_id).log.lines.tail(tail)

    def follow_log(self, instance_id: str, tail: int) -> AsyncIterator[str]:
        """The last `tail` lines, then new ones until the instance has stopped."""
        return self._find(instance_id).log.stream(tail)

    # Small things.

    def _open_for_business(self) -> tuple[asyncio.TaskGroup, Dock]:
        self.check_takes_requests()
        if self._tasks is None or self._dock is None:
            raise RuntimeError("the manager is used outside of `async with manager.run()`")
        return self._tasks, self._dock
