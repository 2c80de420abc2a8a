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
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.broadcast.news import News
from instance_manager.errors import (
    InstanceFailedToStart,
    InstanceNotFound,
    InstanceNotRunning,
    ManagerError,
    ModelNotFound,
    ShuttingDown,
    StartTooSlow,
    UnsupportedModel,
    WrongRunner,
)
from instance_manager.fleet.memory_planner import MemoryPlanner
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.replicas import is_replica_of, models_of
from instance_manager.fleet.scaler import Scaler, spec_of
from instance_manager.fleet.scaling import ScalePolicy, wanted_replicas
from instance_manager.lifecycle.gate import Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.memory.checkpoint import Checkpoint, unsupported
from instance_manager.types import Event, FailureClass, InstanceState

logger = logging.getLogger("berth.fleet")

_ALIVE = frozenset({InstanceState.RUNNING, InstanceState.SLEEPING, InstanceState.WAKING})
_MAX_SHOWN = 200  # characters of a name in a message
_MAX_ALIKE_CHARS, _MAX_ALIKE_OF = 100, 500  # of a name, of names: then those alike are found in milliseconds
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
        room: MemoryPlanner,
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
        self._starter = Scaler(manager, room, self._models, self._news, clock)
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
                model = self._model(name)
                model.profile = wanted[name]
                model.clear_failure()  # it may have been corrected
                model.replicas = {k: one for k, one in model.replicas.items() if self._belongs_to(one, model)}
            else:
                model = self._models[name]
                model.profile = None
                self._forget_unused(model)
            self._tell_names(model)
        self._names = {other: name for name, profile in wanted.items() for other in profile.other_names}
        self._news.tell()
        return frozenset(changed)

    def known(self, name: str) -> Model | None:
        """By name or alias."""
        return self._models.get(self._names.get(name, name))

    def find(self, name: str) -> Model:
        """By name or alias. Raises ModelNotFound, which names what is alike: that takes its time."""
        model = self.known(name)
        if model is None:
            close = self._names_like(name)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "GET /v1/models lists all"
            shown = repr(name[:_MAX_SHOWN]) + ("…" if len(name) > _MAX_SHOWN else "")
            raise ModelNotFound(f"there is no model {shown}; {hint}", param="model")
        return model

    def _names_like(self, name: str) -> list[str]:
        """Names that one may have meant; none where it would take long to find them."""
        known = [*(model.name for model in self.models), *self._names]
        if len(name) > _MAX_ALIKE_CHARS or len(known) > _MAX_ALIKE_OF:
            return []
        by_small = {one.lower(): one for one in known}
        close = difflib.get_close_matches(name.lower(), by_small, n=3, cutoff=0.5)
        return [by_small[one] for one in close]

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
        return [model for name, model in sorted(self._models.items()) if model.is_listed]

    def names_of_instance(self, instance_id: str) -> tuple[str, ...]:
        """What an instance of this Berth is called; nothing for an unknown one."""
        found = (one for model in self._models.values() for one in model.replicas.values())
        return next((one.names for one in found if one.instance_id == instance_id), ())

    # Leases.

    def try_lease(self, model: Model, affinity: bytes = b"", need: RunnerKind | None = None) -> Lease | None:
        """A lease at once; None if one may `wait_for_lease`. Raises what waiting would raise at once.

        `need`: what the replica has to serve.
        """
        if not model.queue.is_waited_for(need) and (lease := model.take(affinity, need)) is not None:
            return lease
        self._check_may_wait(model, need)
        return None

    async def wait_for_lease(self, model: Model, priority: int = 0, need: RunnerKind | None = None) -> Lease:
        """A lease once a replica has room; starts or wakes one if none does.

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
        if not model.is_up_for(self._starter.own_runner(model)):
            self._check_may_start(model)
            model.wants_another = True
            self._news.tell()

    async def stop(self, model: Model, *, force: bool = False) -> None:
        """Stop all replicas; one that has failed is stopped from then on, and so is the model."""
        model.wants_another = False
        for one in list(model.replicas.values()):
            if one.state is not InstanceState.STOPPED:
                await self.manager.stop(one.instance_id, force=force)
        model.clear_failure()

    async def wait_until_up(self, model: Model, timeout_s: float) -> None:
        """Return when a replica runs, when the start has failed, or when the time is out."""
        runner = self._starter.own_runner(model)
        try:
            async with asyncio.timeout(timeout_s):
                while not model.is_awake_for(runner) and (model.wants_another or model.is_starting):
                    await self._news.wait(0.5)
        except TimeoutError:
            return

    def _check_may_wait(self, model: Model, need: RunnerKind | None) -> None:
        if self.manager.is_shutting_down:
            raise ShuttingDown("Berth is shutting down and takes nothing new", retry_after_s=5.0)
        model.queue.check_room()
        if model.is_up_for(need):
            return
        self._check_can_run(model)  # before what its engine would serve: it serves nothing
        if need is not None and not self._starter.can_bring_up(model, need):
            raise _wrong_runner(model, need)
        if not self.config.autostart:
            raise InstanceNotRunning(
                f"model {model.name!r} doesn't run, and AUTOSTART is off; start it first"
            )
        self._check_may_start(model)

    def _check_may_start(self, model: Model) -> None:
        self._check_can_run(model)
        wait_s = model.retry_at - self._clock()
        if (error := model.error) is None or wait_s <= 0:
            return
        if isinstance(error, UnsupportedModel):
            raise UnsupportedModel(str(error), param="model", public=error.public)
        next_try = f"; the next start is tried in {wait_s:.0f} s at the soonest"
        retry_after_s = None if error.is_lasting else wait_s
        raise type(error)(f"{error}{next_try}", retry_after_s=retry_after_s, public=error.public + next_try)

    def _check_can_run(self, model: Model) -> None:
        if (problem := model.checkpoint_problem) is not None:
            raise unsupported(model.name, problem)

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
                if model.profile is None:  # it may have left the catalog while requests waited
                    self._forget_unused(model)
                try:
                    await self._scale(model)
                except ManagerError as error:
                    logger.info("model=%s is not scaled: %s", model.name, error)
            await asyncio.sleep(_SAMPLE_INTERVAL_S)

    async def _scale(self, model: Model) -> None:
        profile = model.profile
        if (
            profile is None
            or (profile.max_replicas <= 1 and not profile.min_replicas)
            or model.checkpoint_problem
        ):
            return
        samples = model.load_samples
        samples.append(model.in_flight + len(model.queue))
        del samples[: -self.config.scale.window_samples]
        awake = [one for one in model.awake if one.spec.profile is not None]  # others aren't the catalog's
        wanted = wanted_replicas(profile, samples, len(awake), self.config.scale)
        if wanted > len(awake) and not model.is_starting and self._clock() >= model.retry_at:
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
            is_there = any(one.spec.profile is not None for one in model.live)
            if profile is not None and (profile.preload or profile.min_replicas) and not is_there:
                model.wants_another = True

    # Books.

    def _on_event(self, event: Event) -> None:
        if event.type == "instance.deleted":
            for model in list(self._models.values()):
                if model.replicas.pop(event.instance_id, None) is not None:
                    self._forget_unused(model)
        elif event.type == "instance.state":
            self._on_state(event)
        if event.data.get("error", {}).get("class") == FailureClass.LOST:
            self._preload([model for model in self._models.values() if event.instance_id in model.replicas])
        self._news.tell()

    def _on_state(self, event: Event) -> None:
        status = InstanceState(event.data["status"])
        if not status.is_terminal:
            with suppress(InstanceNotFound):  # by now it may have told a name that it hadn't when it began
                self.adopt(self.manager.get(event.instance_id))
            return
        for model in [one for one in self._models.values() if event.instance_id in one.replicas]:
            if status is InstanceState.FAILED and event.data["previous"] in _ALIVE:
                what = f"model {model.name!r} died while it ran"
                public = f"{what}; an admin reads the reason in GET /instances/{event.instance_id}"
                model.died(InstanceFailedToStart(f"{what}: {event.data['reason']}", public=public))
            elif status is InstanceState.STOPPED and event.data["previous"] == InstanceState.FAILED:
                model.clear_failure()  # a replica that had failed was stopped by request
            self._forget_unused(model)

    def adopt(self, instance: Instance) -> None:
        """Take an instance into the books, under its profile's name or those it was created by."""
        name = instance.spec.profile
        if name is not None and instance.state.is_terminal and name not in self._models:
            return  # it has ended, and its model has left the catalog
        for name in models_of(instance):
            model = self._model(name)
            if not self._belongs_to(instance, model):
                continue
            model.replicas[instance.instance_id] = instance
            if model.profile is not None and instance.spec.profile is not None:
                instance.other_names = model.profile.other_names
        instance.gate.on_room = partial(self._on_room, instance)
        instance.gate.is_sought = partial(self._is_sought, instance)

    def _belongs_to(self, instance: Instance, model: Model) -> bool:
        """Another model that was given a catalog's name by hand is reached by its id and its other names."""
        profile = model.profile
        if profile is None or is_replica_of(instance, profile, self.manager.config.model_dirs):
            return True
        logger.warning(
            "instance=%s is called %s and loads %s, not the catalog's %s: requests by this name pass it by",
            instance.instance_id,
            model.name,
            instance.model_name,
            profile.model,
        )
        return False

    def _tell_names(self, model: Model) -> None:
        """Let other Berths know what the catalog calls what runs here."""
        names = () if model.profile is None else model.profile.other_names
        for one in model.replicas.values():
            if one.spec.profile is not None and one.other_names != names:
                one.other_names = names
                one.updated({"names": list(one.names)})

    def _is_sought(self, instance: Instance) -> bool:
        """Whether somebody waits for a model that it serves."""
        return any(model.queue for model in self._models.values() if instance.instance_id in model.replicas)

    def _on_room(self, instance: Instance) -> None:
        """With each request's end: so the usual case, that nobody waits, has to cost nothing."""
        if not self._num_waiting:
            return
        for name in models_of(instance):
            if (model := self._models.get(name)) is not None and model.queue:
                model.grant()
        if not instance.gate.in_flight and any(model.queue for model in self._models.values()):
            self._news.tell()  # somebody may wait for it to be idle

    def _want_awake(self, instance: Instance) -> None:
        """A request waits at a sleeper's own gate: it is woken when there is room."""
        model = next(self._models[name] for name in models_of(instance) if name in self._models)
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
        """What was created by hand may be started again by its name; what the catalog has dropped, not."""
        replicas = model.replicas.values()
        is_used = any(one.spec.profile is None or not one.state.is_terminal for one in replicas)
        if model.profile is None and not is_used and not model.queue:
            self._models.pop(model.name, None)


def _wrong_runner(model: Model, need: RunnerKind) -> WrongRunner:
    has, wants = ("pools", "generates") if need is RunnerKind.GENERATE else ("generates", "pools")
    return WrongRunner(
        f"this request needs an engine that {wants}, and model {model.name!r} {has}: ask another model, or "
        f"create an instance of it with `runner: {need}` if its checkpoint can do both",
        param="model",
    )


def _release_unwanted(waiting: asyncio.Future[Lease]) -> None:
    """A lease that was granted just as its request went away."""
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()
