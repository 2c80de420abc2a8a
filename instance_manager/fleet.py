"""Models by name: who serves a request, who waits, and what is started or woken for it.

A request takes a lease of a running replica, or waits in its model's queue; starter.py brings up what is
waited for. A start belongs to the model, not to the request that caused it.
"""

from __future__ import annotations

import asyncio
import difflib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from instance_manager.admission import Lease
from instance_manager.checkpoint import Checkpoint, unsupported
from instance_manager.errors import (
    InstanceFailedToStart,
    InstanceNotRunning,
    ManagerError,
    ModelNotFound,
    ShuttingDown,
    StartTooSlow,
    UnsupportedModel,
)
from instance_manager.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.models import Model
from instance_manager.news import News
from instance_manager.profiles import ModelProfile
from instance_manager.room import RoomKeeper
from instance_manager.scaling import ScalePolicy, wanted_replicas
from instance_manager.starter import Starter, spec_of
from instance_manager.types import Event, FailureClass, InstanceState

logger = logging.getLogger("berth.fleet")

_ALIVE = frozenset({InstanceState.RUNNING, InstanceState.SLEEPING, InstanceState.WAKING})
_SAMPLE_INTERVAL_S = 1.0  # between looks at how loaded models are
_MEASURE_EVERY = 5  # looks, one measurement of memory, unless little of it is left


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """The fleet's policy."""

    autostart: bool = True  # start what is asked for and doesn't run
    max_queue: int = 256  # requests waiting for one model
    max_wait_s: float = 3600.0  # that a request waits at most
    scale: ScalePolicy = field(default_factory=ScalePolicy)


class Fleet:
    """Use it inside `async with fleet.run()`, which lies inside the manager's."""

    def __init__(
        self,
        manager: InstanceManager,
        config: FleetConfig,
        room: RoomKeeper,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.manager = manager
        self.config = config
        self._clock = clock
        self._models: dict[str, Model] = {}
        self._names: dict[str, str] = {}  # alias → model
        self._num_waiting = 0  # requests, for any model
        self._news = News()
        self._room = room
        self._starter = Starter(manager, room, self._models, self._news, clock)
        manager.events.add_listener(self._on_event)
        manager.on_wanted = self._want_awake
        manager.on_created = self.adopt
        manager.on_shutdown = self._refuse_who_waits

    # Names.

    def set_profiles(self, profiles: Iterable[ModelProfile]) -> frozenset[str]:
        """Replace the catalog; returns the names of models that are new, gone or changed.

        What runs goes on as it was started; the next start follows the new profile.
        """
        wanted = {profile.name: profile for profile in profiles}
        old = {name: model.profile for name, model in self._models.items() if model.profile is not None}
        changed = {name for name in wanted.keys() | old.keys() if wanted.get(name) != old.get(name)}
        for name in changed:
            if name in wanted:
                self._model(name).profile = wanted[name]
            else:
                self._models[name].profile = None
                self._forget_unused(self._models[name])
        self._names = {alias: name for name, profile in wanted.items() for alias in profile.aliases}
        self._news.tell()
        return frozenset(changed)

    def known(self, name: str) -> Model | None:
        """By name or alias."""
        return self._models.get(self._names.get(name, name))

    def find(self, name: str) -> Model:
        """By name or alias. Raises ModelNotFound, which names what is alike: that takes its time."""
        model = self.known(name)
        if model is None:
            known = [*self._models, *self._names]
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "GET /v1/models lists all"
            raise ModelNotFound(f"there is no model {name!r}; {hint}", param="model")
        return model

    def protocol_of(self, name: str) -> str | None:
        """The protocol adapter that the model's profile names."""
        model = self._models.get(self._names.get(name, name))
        return None if model is None or model.profile is None else model.profile.protocol

    def identity_of(self, name: str) -> str | None:
        """What answers depend on besides the request: equal as long as the same things serve the model."""
        model = self._models.get(self._names.get(name, name))
        if model is None:
            return None
        served = sorted(f"{one.instance_id}/{one.started_at}" for one in model.live)
        return f"{model.name} {model.profile} {served if model.profile is None else ''}"

    @property
    def models(self) -> list[Model]:
        """All that can be asked for, by name."""
        return [self._models[name] for name in sorted(self._models)]

    # Leases.

    def try_lease(self, model: Model, affinity: bytes = b"") -> Lease | None:
        """A lease at once; None if one may `wait_for_lease`. Raises what waiting would raise at once."""
        if not model.queue and (lease := model.take(affinity)) is not None:
            return lease
        self._check_may_wait(model)
        return None

    async def wait_for_lease(self, model: Model, priority: int = 0) -> Lease:
        """A lease once a replica has room; starts or wakes one if none does.

        Raises QueueFull, InstanceFailedToStart, NoCapacity, InstanceNotRunning, StartTooSlow or ShuttingDown.
        """
        self._check_may_wait(model)
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self.config.max_wait_s):
                waiting = asyncio.ensure_future(model.queue.wait(priority))
                await asyncio.sleep(0)  # now it stands in the queue
                model.grant()
                self._news.tell()
                try:
                    return await waiting
                except asyncio.CancelledError:
                    waiting.cancel()
                    waiting.add_done_callback(_release_unwanted)
                    raise
        except TimeoutError:
            raise StartTooSlow(
                f"model {model.name!r} had no room for the request within {self.config.max_wait_s:.0f} s",
                retry_after_s=5.0,
            ) from None
        finally:
            self._num_waiting -= 1

    def want(self, model: Model) -> None:
        """Bring a replica up unless one runs. Raises ManagerError where that can't be tried now."""
        if not model.awake and not model.is_coming:
            self._check_may_start(model)
            model.wants_another = True
            self._news.tell()

    async def wait_until_up(self, model: Model, timeout_s: float) -> None:
        """Return when a replica runs, when the start has failed, or when the time is out."""
        try:
            async with asyncio.timeout(timeout_s):
                while not model.awake and (model.wants_another or model.is_coming):
                    await self._news.wait(0.5)
        except TimeoutError:
            return

    def _check_may_wait(self, model: Model) -> None:
        if self.manager.is_shutting_down:
            raise ShuttingDown("Berth is shutting down and takes nothing new", retry_after_s=5.0)
        model.queue.check_room()
        if model.awake or model.is_coming:
            return
        if not self.config.autostart:
            raise InstanceNotRunning(
                f"model {model.name!r} doesn't run, and AUTOSTART is off; start it first"
            )
        self._check_may_start(model)

    def _check_may_start(self, model: Model) -> None:
        if (problem := model.problem) is not None:
            raise unsupported(model.name, problem)
        wait_s = model.retry_at - self._clock()
        if isinstance(model.error, UnsupportedModel) and wait_s > 0:
            raise UnsupportedModel(str(model.error), param="model")
        if model.error is not None and wait_s > 0:
            message = f"{model.error}; the next start is tried in {wait_s:.0f} s at the soonest"
            raise InstanceFailedToStart(message, retry_after_s=wait_s)

    # The tasks.

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self._starter.run(), name="starter"),
            asyncio.create_task(self._watch_load(), name="scaling"),
        ]
        try:
            yield
        finally:
            self._refuse_who_waits()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _refuse_who_waits(self) -> None:
        for model in self._models.values():
            model.queue.reject(lambda: ShuttingDown("Berth is shutting down", retry_after_s=5.0))

    async def _watch_load(self) -> None:
        """Keep as many replicas as are asked for, by the profile and by how loaded they are."""
        for number in itertools.count(1):
            if number % _MEASURE_EVERY == 0 or self._room.is_tight:
                self._starter.measure()
            for model in list(self._models.values()):
                try:
                    await self._scale(model)
                except ManagerError as error:
                    logger.info("model=%s is not scaled: %s", model.name, error)
            await asyncio.sleep(_SAMPLE_INTERVAL_S)

    async def _scale(self, model: Model) -> None:
        profile = model.profile
        if profile is None or (profile.max_replicas <= 1 and not profile.min_replicas) or model.problem:
            return
        samples = model.load_samples
        samples.append(model.in_flight + len(model.queue))
        del samples[: -self.config.scale.window_samples]
        awake = model.awake
        wanted = wanted_replicas(profile, samples, len(awake), self.config.scale)
        if wanted > len(awake) and not model.is_coming and self._clock() >= model.retry_at:
            model.wants_another = True
            self._news.tell()
        elif wanted < len(awake):
            least = min(awake, key=lambda one: (one.gate.in_flight, one.gate.last_active))
            if not least.pinned:
                await self.manager.stop(least.instance_id, reason="scaled down", patient=True)

    def preload(self) -> None:
        """Ask for every model that is to be there from the start, unless an earlier Berth has left it."""
        self._preload(self._models.values())
        self._news.tell()

    def _preload(self, models: Iterable[Model]) -> None:
        for model in models:
            profile = model.profile
            if profile is not None and (profile.preload or profile.min_replicas) and not model.live:
                model.wants_another = True

    # Books.

    def _on_event(self, event: Event) -> None:
        if event.type == "instance.deleted":
            for model in list(self._models.values()):
                if model.replicas.pop(event.instance_id, None) is not None:
                    self._forget_unused(model)
        elif event.type == "instance.state" and event.data["previous"] in _ALIVE:
            self._on_end(event)
        elif event.data.get("error", {}).get("class") == FailureClass.LOST:
            self._preload([model for model in self._models.values() if event.instance_id in model.replicas])
        self._news.tell()

    def _on_end(self, event: Event) -> None:
        for model in self._models.values():
            if event.data["status"] == InstanceState.FAILED and event.instance_id in model.replicas:
                reason = event.data["reason"]
                model.died(InstanceFailedToStart(f"model {model.name!r} died while it ran: {reason}"))

    def adopt(self, instance: Instance) -> None:
        """Take an instance into the books, under its profile's name or those it was created by."""
        for name in names_of(instance):
            model = self._model(name)
            model.replicas[instance.instance_id] = instance
        instance.gate.on_room = partial(self._on_room, instance)

    def _on_room(self, instance: Instance) -> None:
        """With each request's end: so the usual case, that nobody waits, has to cost nothing."""
        if not self._num_waiting:
            return
        for name in names_of(instance):
            if (model := self._models.get(name)) is not None and model.queue:
                model.grant()
        if not instance.gate.in_flight and any(model.queue for model in self._models.values()):
            self._news.tell()  # somebody may wait for it to be idle

    def _want_awake(self, instance: Instance) -> None:
        """A request waits at a sleeper's own gate: it is woken when there is room."""
        model = next(self._models[name] for name in names_of(instance) if name in self._models)
        model.wants_another = True
        self._news.tell()

    def _model(self, name: str) -> Model:
        if name not in self._models:
            self._models[name] = Model(
                name, None, self.config.max_queue, self._clock, find_checkpoint=self._checkpoint_of
            )
        return self._models[name]

    def _checkpoint_of(self, profile: ModelProfile) -> Checkpoint | None:
        """None also where it can't be found: the start will say so."""
        try:
            return Checkpoint.of(spec_of(profile), self.manager.config)
        except ManagerError:
            return None

    def _forget_unused(self, model: Model) -> None:
        if model.profile is None and not model.replicas and not model.queue:
            self._models.pop(model.name, None)


def names_of(instance: Instance) -> tuple[str, ...]:
    """What clients may call it."""
    if instance.spec.profile is not None:
        return (instance.spec.profile,)
    return tuple(dict.fromkeys((instance.served_model_name, instance.model_name)))


def _release_unwanted(waiting: asyncio.Future[Lease]) -> None:
    """A lease that was granted just as its request went away."""
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()
