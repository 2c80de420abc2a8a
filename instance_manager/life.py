"""One life of an instance, from a spawn to an empty process group; meanwhile it alone moves the state."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from instance_manager.adoption import SWEEP_DEADLINE_S, Fate, FoundRun
from instance_manager.engine_run import EngineFailed, EngineRun
from instance_manager.errors import InstanceExists, NoCapacity
from instance_manager.goal import Desired, Goal
from instance_manager.instance import Instance
from instance_manager.liveness import Lifeless, Vitals, watch_liveness
from instance_manager.logs import LogFile
from instance_manager.port_hold import PortHold
from instance_manager.ports import PortRange
from instance_manager.process_tree import ProcessId, until_tree_gone
from instance_manager.sleeping import SLEEP_LEVELS, Sleeper, SleepRefused
from instance_manager.state_keeper import StateKeeper
from instance_manager.stores.errors import PortHeld
from instance_manager.types import (
    Endpoint,
    FailureClass,
    InstanceFailure,
    InstanceState,
    ManagerConfig,
    RunSecrets,
)

logger = logging.getLogger("berth.manager")

_PORT_ATTEMPTS = 3  # processes spawned per life because someone else took the port
# An engine that is still starting serves nobody and may not handle SIGTERM yet, while its workers do not
# know of it at all: it gets little time before the whole group is killed.
_STARTING_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Dock:
    """What all instances share."""

    config: ManagerConfig
    ports: PortRange
    client: httpx.AsyncClient
    keeper: StateKeeper
    new_token: Callable[[], str]


class _GoalChanged(Exception):
    """The start is not wanted any more."""


class Life:
    """Lived once, by `run`. Over when the goal wants another life, or none, or when the engine has failed."""

    def __init__(
        self,
        instance: Instance,
        log: LogFile,
        dock: Dock,
        goal: Goal,
        berth: PortHold,
        found: FoundRun | None = None,
    ) -> None:
        """`found`: the process to go on with, instead of a new one."""
        self.number = goal.life
        self.was_ready = found is not None and found.was_ready
        self._found = found
        self._instance = instance
        self._log = log
        self._dock = dock
        self._goal = goal
        self._berth = berth
        self._run: EngineRun | None = None

    @property
    def is_over(self) -> bool:
        """Whether the goal is something else by now."""
        return self._goal.desired is not Desired.RUNNING or self._goal.life != self.number

    async def run(self) -> InstanceFailure | None:
        """Live it. Returns what it failed of; None = it was ended as wished."""
        instance = self._instance
        if instance.state.is_terminal and not self.is_over:
            instance.set_state(InstanceState.STARTING, self._goal.reason)
        stop_grace_s = self._dock.config.stop_grace_s
        grace_s = stop_grace_s if self.was_ready else min(_STARTING_GRACE_S, stop_grace_s)
        failure: InstanceFailure | None = None
        try:
            run = await self._start()
            grace_s, self.was_ready = stop_grace_s, True
            await self._watch(run)
            await self._drain(run)
            if await self._let_go():
                return None
            self._show_stopping()
        except _GoalChanged:
            if await self._let_go():
                return None
            self._show_stopping()
        except EngineFailed as error:
            failure = error.failure
        except Exception as error:
            logger.exception("instance=%s: the supervisor failed", instance.instance_id)
            failure = InstanceFailure(FailureClass.CRASHED, f"an error in Berth itself: {error!r}")
        instance.gate.close()
        return await self._end_run(grace_s) or failure

    def abandon(self) -> None:
        """The task was cancelled: kill what runs, without waiting."""
        if self._run is not None:
            self._run.abandon()

    async def _start(self) -> EngineRun:
        """Spawn and wait for health; again on another port if someone else took ours."""
        if self._found is not None and (found_run := await self._take_over(self._found)) is not None:
            return found_run
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            run = await self._spawn()
            try:
                await self._until_ready(run)
                return run
            except EngineFailed as error:
                if error.failure.failure_class is not FailureClass.PORT_IN_USE or attempt == _PORT_ATTEMPTS:
                    raise
            await self._end_run(grace_s=0)
            lost = self._berth.port
            self._change_port()
            self._instance.set_state(InstanceState.STARTING, f"port {lost} was taken by another program")
        raise RuntimeError("unreachable: the last attempt returns or raises")

    async def _take_over(self, found: FoundRun) -> EngineRun | None:
        """Go on with an earlier Berth's process; None = there is to be a new one. Raises EngineFailed."""
        instance = self._instance
        if found.fate is not Fate.ADOPT:
            if found.secrets is not None:
                await until_tree_gone(found.secrets.token, found.engine, SWEEP_DEADLINE_S)
            if self.is_over:
                raise _GoalChanged
            if found.fate is Fate.BEGIN:
                return None
            message = "it ran when an earlier Berth ended, and can't be found any more"
            raise EngineFailed(InstanceFailure(FailureClass.LOST, message))
        run = self._run = EngineRun.adopt(instance, self._log, self._berth.held, found)
        self._show_process(run)
        await self._until_healthy(run)
        if instance.plan.sleep_style is not None:
            await self._see_whether_asleep(run)
        self._is_ready(run, f"process {run.pid} taken over from an earlier Berth")
        return run

    async def _see_whether_asleep(self, run: EngineRun) -> None:
        """It may have fallen asleep, or been woken, when nobody could write that down any more."""
        try:
            is_asleep = await self._sleeper(run).is_asleep()
        except SleepRefused as error:
            logger.warning("instance=%s: %s", self._instance.instance_id, error)
            return
        instance = self._instance
        if is_asleep and not instance.level:
            instance.level = max(SLEEP_LEVELS)  # nobody knows how deep
            self._goal.level = 0 if instance.gate.queued else instance.level
        elif not is_asleep:
            instance.level = 0

    async def _spawn(self) -> EngineRun:
        instance, dock = self._instance, self._dock
        await self._book()
        run = await EngineRun.spawn(instance, self._log, self._berth.held, dock.config)
        self._run = run
        instance.spawns += 1
        self._show_process(run)
        instance.set_state(InstanceState.HEALTH_CHECKING, f"process {run.pid} spawned")
        return run

    async def _book(self) -> None:
        """A port, and secrets by which the process is known again: stored before there is a process."""
        instance, dock = self._instance, self._dock
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self.is_over:
                raise _GoalChanged
            if self._berth.port is None or not dock.ports.is_bindable(self._berth.port):
                self._change_port()
            instance.secrets = RunSecrets(dock.new_token(), secrets.token_urlsafe(24))
            instance.log_start = await self._log.size()
            try:
                await dock.keeper.written(instance.instance_id)
            except InstanceExists as error:
                failure = InstanceFailure(FailureClass.BAD_ARGUMENTS, error.message)
                raise EngineFailed(failure) from error
            except PortHeld as error:
                if attempt == _PORT_ATTEMPTS:
                    raise EngineFailed(InstanceFailure(FailureClass.PORT_IN_USE, error.message)) from error
                self._change_port()
                continue
            if self.is_over:
                raise _GoalChanged
            return

    def _show_process(self, run: EngineRun) -> None:
        instance = self._instance
        instance.pid, instance.pid_start_time = run.pid, run.pid_start_time
        instance.pid_start_ticks = ProcessId.of(run.pid).start_ticks

    async def _until_ready(self, run: EngineRun) -> None:
        await self._until_healthy(run)
        self._is_ready(run, "healthy")

    async def _until_healthy(self, run: EngineRun) -> None:
        instance, dock = self._instance, self._dock
        if self.is_over or not await run.until_ready(dock.client, instance, dock.config, self._goal.changed):
            raise _GoalChanged

    def _is_ready(self, run: EngineRun, reason: str) -> None:
        is_awake = self._instance.level == 0
        self._instance.set_state(InstanceState.RUNNING if is_awake else InstanceState.SLEEPING, reason)
        if is_awake:
            self._open_gate(run)

    async def _watch(self, run: EngineRun) -> None:
        """Return when the goal changes. Raises EngineFailed when the engine ends by itself."""
        while not self.is_over:
            if run.exited.done():
                self._instance.gate.close()
                raise await run.post_mortem(was_ready=True)
            if self._goal.level != self._instance.level:
                await self._change_level(run)
                continue
            await self._until_news(run)

    async def _until_news(self, run: EngineRun) -> None:
        """Return when the goal has changed or the engine has ended. Raises EngineFailed if it is lifeless."""
        instance, rules = self._instance, self._dock.config.liveness
        watching: list[asyncio.Task[None]] = []
        if rules.interval_s and instance.level == 0:
            vitals = Vitals(f"http://{instance.host}:{run.port}", run.api_key, instance.plan.health_path)
            alive = watch_liveness(self._dock.client, vitals, rules, time.monotonic)
            watching.append(asyncio.create_task(alive, name=f"liveness of {run.pid}"))
        try:
            news: list[asyncio.Future[Any]] = [run.exited, self._goal.changed, *watching]
            await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
            for task in watching:
                if task.done() and not run.exited.done():
                    task.result()
        except Lifeless as error:
            instance.gate.close()
            raise run.failed(FailureClass.UNHEALTHY, str(error)) from error
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _change_level(self, run: EngineRun) -> None:
        """One step towards the wanted level, or none where the goal changes meanwhile."""
        if self._goal.level > self._instance.level:
            if await self._empty(run):
                await self._fall_asleep(run, self._goal.level)
            if self._goal.level == self._instance.level == 0 and not self.is_over:
                self._open_gate(run)  # somebody wants it awake before it slept, or it wouldn't sleep
                self._instance.announce()  # whoever sent it to sleep need not wait any longer
        else:
            await self._wake_up(run)

    async def _empty(self, run: EngineRun) -> bool:
        """Wait for the leases that are out; False if the goal changes or the engine ends before."""
        gate, wanted = self._instance.gate, self._goal.level
        while gate.in_flight:
            await asyncio.wait(
                (gate.drained(), run.exited, self._goal.changed), return_when=asyncio.FIRST_COMPLETED
            )
            if run.exited.done() or self.is_over or self._goal.level != wanted:
                return False
        return True

    async def _fall_asleep(self, run: EngineRun, level: int) -> None:
        try:
            if not await run.unless_exited(self._sleeper(run).sleep(level)):
                return
        except SleepRefused as error:
            logger.warning("instance=%s doesn't sleep: %s", self._instance.instance_id, error)
            self._goal.sleep_error = str(error)
            self._goal.level = self._instance.level
            self._instance.announce()
            return
        self._instance.level = level
        if self._instance.state is InstanceState.RUNNING:
            self._instance.set_state(InstanceState.SLEEPING, f"asleep at level {level}")
        else:
            self._instance.updated({"sleep_level": level})

    async def _wake_up(self, run: EngineRun) -> None:
        """An engine that can't be woken is replaced by a new process; who waits goes on waiting."""
        instance = self._instance
        level = instance.level
        instance.set_state(InstanceState.WAKING, f"waking from level {level}")
        try:
            if not await run.unless_exited(self._sleeper(run).wake(level)):
                return
        except SleepRefused as error:
            logger.warning("instance=%s is restarted: it can't be woken: %s", instance.instance_id, error)
            if not self.is_over:
                self._goal.reason = f"could not be woken: {error}"
                self._goal.drain_timeout_s = 0.0
                self._goal.want_new_life()
            return
        instance.level = 0
        if not self.is_over:
            instance.set_state(InstanceState.RUNNING, f"woken from level {level}")
            self._open_gate(run)

    def _sleeper(self, run: EngineRun) -> Sleeper:
        instance = self._instance
        if instance.plan.sleep_style is None:
            raise RuntimeError("an engine that can't sleep was asked to")
        return Sleeper(
            self._dock.client,
            f"http://{instance.host}:{run.port}",
            run.api_key,
            instance.plan.sleep_style,
            instance.served_model_name,
        )

    def _open_gate(self, run: EngineRun) -> None:
        instance = self._instance
        if not self._goal.level:
            instance.gate.open(Endpoint(instance.host, run.port, run.api_key, instance.spawns))

    async def _drain(self, run: EngineRun) -> None:
        """Wait for the leases that are out, as long as the drain time allows and the engine lives."""
        gate = self._instance.gate
        gate.close()
        if self._goal.desired is not Desired.DETACHED:
            self._show_stopping()
        began = time.monotonic()
        while gate.in_flight and not run.exited.done():
            remaining_s = began + self._goal.drain_timeout_s - time.monotonic()
            if remaining_s <= 0:
                logger.warning(
                    "instance=%s stops with %d requests in flight", gate.instance_id, gate.in_flight
                )
                return
            await asyncio.wait(
                (gate.drained(), run.exited, self._goal.changed),
                timeout=None if math.isinf(remaining_s) else remaining_s,
                return_when=asyncio.FIRST_COMPLETED,
            )

    def _show_stopping(self) -> None:
        state = self._instance.state
        if not state.is_terminal and state is not InstanceState.STOPPING:
            self._instance.set_state(InstanceState.STOPPING, self._goal.reason)

    async def _let_go(self) -> bool:
        """Leave the process to the next Berth, if that is the goal; whether it was possible."""
        if self._goal.desired is not Desired.DETACHED:
            return False
        if self._run is None or self._instance.state.is_terminal:
            return True  # as it is, the next Berth begins
        if not self._run.can_be_left:
            self._goal.desired = Desired.DELETED  # from this Berth's books; its record stays
            self._goal.reason = "Berth is shutting down, and no other could take it over: it has no shim"
            return False
        await self._run.let_go()
        self._run = None
        return True

    async def _end_run(self, grace_s: float) -> InstanceFailure | None:
        """End what runs, if anything does. A failure only if it could not be ended."""
        if self._run is None:
            return None
        stuck = await self._run.end(grace_s)
        self._run = None
        self._instance.pid = self._instance.pid_start_time = self._instance.memory_bytes = None
        self._instance.pid_start_ticks = None
        if stuck is not None:
            self._berth.keep_taken()  # but it stays taken in the range: somebody may still listen there
        return stuck

    def _change_port(self) -> None:
        lost = self._berth.port
        try:
            self._berth.change()
        except NoCapacity as error:
            message = f"port {lost} is in use, and {error.message}"
            raise EngineFailed(InstanceFailure(FailureClass.PORT_IN_USE, message)) from error
