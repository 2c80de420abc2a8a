"""Models by name: which replica serves a request, which requests wait, and what is started or woken for them.

A request gets a lease of a running replica or waits in its model's queue; scaler.py starts or wakes what the
queues need. A start belongs to the model, not to the request that caused it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.broadcast.broadcast import Broadcast
from instance_manager.errors import (
    InstanceNotFound,
    InstanceNotRunning,
    ShuttingDown,
    StartTooSlow,
    UnsupportedModel,
    WrongRunner,
)
from instance_manager.fleet.load_monitor import LoadMonitor
from instance_manager.fleet.memory_planner import MemoryPlanner
from instance_manager.fleet.model_registry import ModelRegistry
from instance_manager.fleet.models import Model
from instance_manager.fleet.next_replica import NextReplica
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.scaler import Scaler
from instance_manager.fleet.scaling import ScalePolicy
from instance_manager.lifecycle.gate import Gate, Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.types import Event, FailureClass, InstanceState

logger = logging.getLogger("berth.fleet")


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """The fleet's policy."""

    autostart: bool = True  # start a requested model that doesn't run
    max_queue: int = 256  # requests waiting for one model
    max_wait_s: float = 3600.0  # that a request waits at most
    scale: ScalePolicy = field(default_factory=ScalePolicy)


class Fleet:
    """Use it inside `async with fleet.run()`, which lies inside the manager's."""

    def __init__(
        self,
        manager: InstanceManager,
        config: FleetConfig,
        planner: MemoryPlanner,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.manager = manager
        self.config = config
        self._num_waiting = 0  # requests, for any model
        self._news = Broadcast()
        self._registry = ModelRegistry(manager, config.max_queue, clock)
        self._models = self._registry.by_name
        self._replicas = NextReplica(manager)
        self._scaler = Scaler(manager, planner, self._replicas, self._models, self._news, clock)
        self._load_monitor = LoadMonitor(
            manager, self._registry, planner, self._scaler, config.scale, self._news, clock
        )
        self.known = self._registry.known
        self.having_replica = self._registry.having_replica
        self.adapter_in = self._registry.adapter_in
        self.find = self._registry.find
        self.names_like = self._registry.names_like
        manager.events.add_listener(self._on_event)
        manager.observe(self)

    # Models.

    def set_profiles(self, profiles: Iterable[ModelProfile]) -> frozenset[str]:
        """Replace the catalog; returns the names of models that are new, gone or changed.

        Running replicas stay as they were started; the next start follows the new profile.
        """
        changed = self._registry.set_profiles(profiles)
        self._news.notify_all()
        return changed

    @property
    def models(self) -> list[Model]:
        """All models that can be requested, sorted by name."""
        return self._registry.listed

    def protocol_of(self, name: str) -> str | None:
        """The protocol adapter that the model's profile names."""
        model = self.known(name)
        return None if model is None or model.profile is None else model.profile.protocol

    def identity_of(self, name: str) -> str | None:
        """What a response depends on besides its request; equal while the same processes serve the model."""
        model = self.known(name)
        if model is None:
            return None
        served = sorted(f"{one.instance_id}/{one.started_at}" for one in model.live)
        return f"{model.name} {model.profile} {served if model.profile is None else ''}"

    def names_of_instance(self, instance_id: str) -> tuple[str, ...]:
        """The model names of an instance of this node; none for an unknown instance."""
        found = (one for model in self._models.values() for one in model.replicas.values())
        return next((one.names for one in found if one.instance_id == instance_id), ())

    # Leases.

    def try_lease(self, model: Model, affinity: bytes = b"", need: RunnerKind | None = None) -> Lease | None:
        """A lease at once; None if the caller may `wait_for_lease`. Raises what waiting would raise at once.

        `need`: what the replica has to serve.
        """
        if not model.queue.is_waited_for(need) and (lease := model.try_lease(affinity, need)) is not None:
            return lease
        self._check_may_wait(model, need)
        return None

    async def wait_for_lease(self, model: Model, priority: int = 0, need: RunnerKind | None = None) -> Lease:
        """A lease once a replica has capacity; starts or wakes a replica if none runs.

        Raises WrongRunner, QueueFull, InstanceFailedToStart, NoCapacity, InstanceNotRunning, StartTooSlow or
        ShuttingDown.
        """
        self._check_may_wait(model, need)
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self.config.max_wait_s):
                waiting = asyncio.ensure_future(model.queue.wait(priority, need))
                await asyncio.sleep(0)  # now it stands in the queue
                model.grant()
                self._news.notify_all()
                try:
                    return await waiting
                except asyncio.CancelledError:
                    waiting.cancel()
                    waiting.add_done_callback(_release_unwanted)
                    raise
        except TimeoutError:
            raise StartTooSlow(
                f"model {model.name!r} had no capacity for the request within {self.config.max_wait_s:.0f} s",
                retry_after_s=5.0,
            ) from None
        finally:
            self._num_waiting -= 1

    def request_start(self, model: Model) -> None:
        """Start or wake a replica unless one runs. Raises ManagerError where that can't be tried now."""
        if not model.is_up_for(self._replicas.own_runner(model)):
            self._check_may_start(model)
            model.start_requested = True
            self._news.notify_all()

    async def stop(self, model: Model, *, force: bool = False) -> None:
        """Stop all replicas; failed replicas, and a failed model, become stopped. None starts meanwhile."""
        model.start_requested = False
        ids = [one.instance_id for one in model.replicas.values() if one.state is not InstanceState.STOPPED]
        model.num_stops += 1
        try:
            await asyncio.gather(*(self.manager.stop(instance_id, force=force) for instance_id in ids))
        finally:
            model.num_stops -= 1
            self._news.notify_all()
        model.clear_failure()

    async def wait_until_up(self, model: Model, timeout_s: float) -> None:
        """Return when a replica runs, when the start has failed, or after `timeout_s`."""
        runner = self._replicas.own_runner(model)
        try:
            async with asyncio.timeout(timeout_s):
                while not model.is_awake_for(runner) and (model.start_requested or model.is_starting):
                    await self._news.wait_for_change(0.5)
        except TimeoutError:
            return

    def _check_may_wait(self, model: Model, need: RunnerKind | None) -> None:
        if self.manager.is_shutting_down:
            raise ShuttingDown("Berth is shutting down and accepts no new requests", retry_after_s=5.0)
        model.queue.check_not_full()
        if model.is_up_for(need):
            return
        self._check_can_run(model)  # before the check of the runner: such an engine serves nothing
        if need is not None and not self._replicas.can_bring_up(model, need):
            raise _wrong_runner(model, need)
        if not self.config.autostart:
            raise InstanceNotRunning(
                f"model {model.name!r} isn't running and AUTOSTART is off; start it first"
            )
        self._check_may_start(model)

    def _check_may_start(self, model: Model) -> None:
        self._check_can_run(model)
        wait_s = model.backoff.wait_s
        if (error := model.error) is None or wait_s <= 0:
            return
        if isinstance(error, UnsupportedModel):
            raise UnsupportedModel(str(error), param="model", public=error.public)
        next_try = f"; the next start is tried in {wait_s:.0f} s at the earliest"
        retry_after_s = None if error.is_lasting else wait_s
        raise type(error)(f"{error}{next_try}", retry_after_s=retry_after_s, public=error.public + next_try)

    def _check_can_run(self, model: Model) -> None:
        if (refusal := model.refusal) is not None:
            raise refusal

    # The tasks.

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        for instance in self.manager.list(include_terminal=True):  # left by a previous Berth process
            self.adopt(instance)
            for model in self._registry.having_replica(instance.instance_id):
                if self._replicas.is_current(model, instance):
                    model.recall_failure(instance)
        tasks = [
            asyncio.create_task(self._scaler.run(), name="scaler"),
            asyncio.create_task(self._load_monitor.run(), name="load monitor"),
        ]
        try:
            yield
        finally:
            self.shutdown_begun()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def preload(self) -> None:
        """Request a start of every model to preload, unless an earlier Berth process left it running."""
        self._preload(self._models.values())
        self._news.notify_all()

    def _preload(self, models: Iterable[Model]) -> None:
        for model in models:
            profile = model.profile
            is_there = any(one.spec.profile is not None for one in model.live)
            if profile is not None and (profile.preload or profile.min_replicas) and not is_there:
                model.start_requested = True

    # Instances.

    def adopt(self, instance: Instance) -> None:
        """Make an instance a replica of its models."""
        self._registry.add_replica(instance)

    def _on_event(self, event: Event) -> None:
        if event.type == "instance.deleted":
            for model in self._registry.having_replica(event.instance_id):
                model.backoff.restart_at = None  # nor should another take its place unasked
            self._registry.remove_replica(event.instance_id)
        elif event.type == "instance.state":
            self._on_state(event)
        if event.data.get("error", {}).get("class") == FailureClass.LOST:
            self._preload(self._registry.having_replica(event.instance_id))
        self._news.notify_all()

    def _on_state(self, event: Event) -> None:
        status = InstanceState(event.data["status"])
        with suppress(InstanceNotFound):  # it may report a model name by now that it had not at its start
            self.adopt(self.manager.get(event.instance_id))
        for model in self._registry.having_replica(event.instance_id):
            model.record_state(model.replicas[event.instance_id], event)
            if status.is_terminal:
                self._registry.remove_if_unused(model)

    # ManagerObserver

    def is_sought(self, gate: Gate) -> bool:
        """Whether a request waits for a model that the gate's instance serves."""
        return any(model.queue for model in self._registry.having_replica(gate.instance_id))

    def capacity_freed(self, gate: Gate) -> None:
        """The usual case, that no request waits, must cost nothing."""
        if not self._num_waiting:
            return
        for model in self._registry.having_replica(gate.instance_id):
            if model.queue:
                model.grant()
        if not gate.in_flight and any(model.queue for model in self._models.values()):
            self._news.notify_all()  # a model may wait for this instance to be idle

    def may_wake(self, instance: Instance) -> bool:
        """No: the scaler wakes it once it fits into memory."""
        self._registry.models_of(instance)[0].start_requested = True
        self._news.notify_all()
        return False

    def shutdown_begun(self) -> None:
        for model in self._models.values():
            model.queue.reject(lambda: ShuttingDown("Berth is shutting down", retry_after_s=5.0))


def _wrong_runner(model: Model, need: RunnerKind) -> WrongRunner:
    has, wants = "generates text", "computes embeddings or scores"
    if need is RunnerKind.GENERATE:
        has, wants = wants, has
    return WrongRunner(
        f"this request needs an engine that {wants}, but model {model.name!r} {has}: use another model, "
        f"or create an instance of it with the parameter `runner: {need}` if its checkpoint can do both",
        param="model",
    )


def _release_unwanted(waiting: asyncio.Future[Lease]) -> None:
    """A lease that was granted just as its request was cancelled."""
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()
