"""One supervisor per instance: it owns the process and alone moves the instance's state.

Others say what they want (`request_start`, `request_stop` …: synchronous, they only write the goal) and wait
for an outcome. One task compares goal and reality and acts until they agree. A *life* goes from a spawn to
an empty process group; each wish for a new process asks for a life with a higher number, so that "this
life is over" stays true whatever is asked for next.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import httpx

from instance_manager.engine_run import EngineFailed, EngineRun
from instance_manager.errors import (
    InstanceFailedToStart,
    InstanceNotRunning,
    ManagerError,
    NoCapacity,
    ShuttingDown,
    WrongState,
)
from instance_manager.failures import explain
from instance_manager.instance import Instance
from instance_manager.liveness import Lifeless, Vitals, watch_liveness
from instance_manager.logs import LogFile
from instance_manager.ports import PortRange
from instance_manager.restarts import Restarts
from instance_manager.sleeping import Sleeper, SleepRefused
from instance_manager.types import Endpoint, FailureClass, InstanceFailure, InstanceState, ManagerConfig

logger = logging.getLogger("berth.manager")

_PORT_ATTEMPTS = 3  # processes spawned per life because someone else took the port
# An engine that is still starting serves nobody and may not handle SIGTERM yet, while its workers do not
# know of it at all: it gets little time before the whole group is killed.
_STARTING_GRACE_S = 1.0


class Desired(Enum):
    """What the instance is meant to become."""

    RUNNING = auto()
    STOPPED = auto()
    DELETED = auto()


@dataclass(frozen=True, slots=True)
class Dock:
    """What all supervisors share."""

    config: ManagerConfig
    ports: PortRange
    client: httpx.AsyncClient


class _GoalChanged(Exception):
    """The start is not wanted any more."""


class Supervisor:
    """See the module. Made with the port taken and the instance in `starting`; then `run` as a task."""

    def __init__(self, instance: Instance, log: LogFile, dock: Dock, port: int) -> None:
        self.instance = instance
        self.log = log
        self.ended_life = 0  # number of the last life that is over
        self.sleep_error: str | None = None  # why it does not sleep although it was asked to
        self.is_forgotten = False  # set by the manager once a deleted instance is out of its books
        self._dock = dock
        self._port: int | None = port  # None = none is held
        self._desired = Desired.RUNNING
        self._wanted_life = 1
        self._life = 0
        self._stop_reason = ""
        self._drain_timeout_s = 0.0
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._run: EngineRun | None = None
        self._wanted_level = 0  # of sleep; 0 = awake
        self._restarts = Restarts(dock.config.restart)
        self._resume_at = 0.0  # monotonic seconds; before, no life begins

    # What others may ask.

    @property
    def wants_running(self) -> bool:
        """Whether a request may wait: the instance is running or will be."""
        return self._desired is Desired.RUNNING

    @property
    def is_settled(self) -> bool:
        """Whether nothing will change until somebody asks for something, or the engine crashes."""
        if self._desired is Desired.RUNNING:
            is_there = self.instance.state in (InstanceState.RUNNING, InstanceState.SLEEPING)
            return is_there and not self._is_over and self.instance.level == self._wanted_level
        return self.ended_life == self._wanted_life

    async def ended(self, life: int) -> None:
        """Wait until that life is over: its process group is gone."""
        while self.ended_life < life:
            await self.instance.changed()

    def request_start(self) -> None:
        """Begin a new life, from a terminal state only. Raises WrongState or NoCapacity."""
        self._restarts.forgive()
        if self._is_backing_off:
            self._resume_at = 0.0
            self._announce()
            return
        if self._desired is not Desired.STOPPED or not self.instance.state.is_terminal:
            raise self._wrong_state("be started")
        if self._port is None:
            self._hold_port(self._dock.ports.take())
        self._want_new_life()
        self.instance.set_state(InstanceState.STARTING, "started by request")

    @property
    def is_asleep(self) -> bool:
        """Whether it sleeps or is about to, so that somebody has to wake it before it serves."""
        return self._wanted_level > 0

    def request_sleep(self, level: int) -> None:
        """Accept nothing more for now, drain, and give memory back: the KV cache's, at level 2 the weights'.

        Deeper than asked for is fine. Raises WrongState where it isn't running or can't sleep.
        """
        instance = self.instance
        if self._desired is not Desired.RUNNING or self._is_over or instance.state.is_terminal:
            raise self._wrong_state("be put to sleep")
        if instance.state in (InstanceState.STARTING, InstanceState.HEALTH_CHECKING):
            raise self._wrong_state("be put to sleep before it runs")
        if instance.plan.sleep_style is None:
            raise WrongState(
                f"instance {instance.instance_id!r} can't sleep: engine {instance.spec.engine!r} was started "
                "without --enable-sleep-mode; stop it instead"
            )
        self._wanted_level = max(level, instance.level)
        self.sleep_error = None
        instance.gate.close()
        self._announce()

    def request_wake(self) -> None:
        """Serve again. Raises WrongState where there is nothing to wake."""
        if self._desired is not Desired.RUNNING or self.instance.state.is_terminal:
            raise self._wrong_state("be woken")
        if self._wanted_level:
            self._wanted_level = 0
            self._announce()

    def request_restart(self) -> int:
        """End the present life and begin another; returns the number of the one that ends.

        Requests that come meanwhile wait. Raises WrongState while the instance is being stopped or deleted.
        """
        if self._desired is not Desired.RUNNING:
            raise self._wrong_state("be restarted")
        ending = self._wanted_life
        self.instance.gate.close()
        self._stop_reason = "restarted by request"
        self._drain_timeout_s = self._dock.config.drain_timeout_s
        self._want_new_life()
        return ending

    def request_stop(
        self, reason: str, *, drain_timeout_s: float, delete: bool = False, shutting_down: bool = False
    ) -> int:
        """Accept nothing more from now on, then drain and end; returns the number of the life that ends.

        Asked again with a shorter drain time, the shorter one holds.
        """
        instance = self.instance
        if self._desired is Desired.RUNNING:
            self._stop_reason = reason
            self._drain_timeout_s = drain_timeout_s
            self._desired = Desired.STOPPED
        self._drain_timeout_s = min(self._drain_timeout_s, drain_timeout_s)
        if delete:
            self._desired = Desired.DELETED
        instance.gate.close()
        instance.gate.reject(lambda: self._refusal(shutting_down))
        if instance.state is InstanceState.FAILED and not delete:
            instance.set_state(InstanceState.STOPPED, reason)
        self._announce()
        return self._wanted_life

    # The task.

    async def run(self) -> None:
        """Pursue the goal until the instance is deleted or the task is cancelled."""
        try:
            while self._desired is not Desired.DELETED or self._wanted_life != self.ended_life:
                if self._wanted_life != self.ended_life:
                    await self._back_off()
                    self._begin_wanted_life()
                    await self._live()
                else:
                    await asyncio.wait((self._changed,))
        finally:
            if self._run is not None:  # only a cancelled task leaves one
                self._run.abandon()
            self.ended_life = self._wanted_life  # whoever waits must not wait for ever
            self.instance.announce()

    def _begin_wanted_life(self) -> None:
        """A life that was replaced before it began counts as ended: somebody may wait for that."""
        self._life = self._wanted_life
        self._wanted_level = self.instance.level = 0
        self.ended_life = self._life - 1
        self.instance.announce()

    async def _back_off(self) -> None:
        """After a failure that a restart answers: wait, unless the goal changes or somebody is impatient."""
        while (wait_s := self._resume_at - time.monotonic()) > 0 and self._desired is Desired.RUNNING:
            await asyncio.wait((self._changed,), timeout=wait_s)

    async def _live(self) -> None:
        """One life, from a spawn to an empty process group."""
        instance = self.instance
        if instance.state.is_terminal and self._desired is Desired.RUNNING:
            instance.set_state(InstanceState.STARTING, self._stop_reason)
        stop_grace_s = self._dock.config.stop_grace_s
        grace_s = min(_STARTING_GRACE_S, stop_grace_s)
        failure: InstanceFailure | None = None
        was_ready = False
        try:
            run = await self._start()
            grace_s, was_ready = stop_grace_s, True
            await self._watch(run)
            await self._drain(run)
        except _GoalChanged:
            if not instance.state.is_terminal:
                instance.set_state(InstanceState.STOPPING, self._stop_reason)
        except EngineFailed as error:
            failure = error.failure
        except Exception as error:
            logger.exception("instance=%s: the supervisor failed", instance.instance_id)
            failure = InstanceFailure(FailureClass.CRASHED, f"an error in Berth itself: {error!r}")
        instance.gate.close()
        failure = await self._end_run(grace_s) or failure
        self._conclude(failure, was_ready=was_ready)

    async def _start(self) -> EngineRun:
        """Spawn and wait for health; again on another port if someone else took ours."""
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            run = await self._spawn()
            try:
                await self._until_ready(run)
                return run
            except EngineFailed as error:
                if error.failure.failure_class is not FailureClass.PORT_IN_USE or attempt == _PORT_ATTEMPTS:
                    raise
            await self._end_run(grace_s=0)
            lost = self._port
            self._change_port()
            self.instance.set_state(InstanceState.STARTING, f"port {lost} was taken by another program")
        raise RuntimeError("unreachable: the last attempt returns or raises")

    async def _spawn(self) -> EngineRun:
        instance, dock = self.instance, self._dock
        if self._is_over:
            raise _GoalChanged
        if self._port is None or not dock.ports.is_bindable(self._port):
            self._change_port()
        run = await EngineRun.spawn(instance, self.log, self._held_port, dock.config)
        self._run = run
        instance.spawns += 1
        instance.pid, instance.pid_start_time = run.pid, run.pid_start_time
        instance.set_state(InstanceState.HEALTH_CHECKING, f"process {run.pid} spawned")
        return run

    async def _until_ready(self, run: EngineRun) -> None:
        instance, dock = self.instance, self._dock
        if self._is_over or not await run.until_ready(dock.client, instance, dock.config, self._changed):
            raise _GoalChanged
        instance.set_state(InstanceState.RUNNING, "healthy")
        self._open_gate(run)

    async def _watch(self, run: EngineRun) -> None:
        """Return when the goal changes. Raises EngineFailed when the engine ends by itself."""
        while not self._is_over:
            if run.exited.done():
                self.instance.gate.close()
                raise await run.post_mortem(was_ready=True)
            if self._wanted_level != self.instance.level:
                await self._change_level(run)
                continue
            await self._until_news(run)

    async def _until_news(self, run: EngineRun) -> None:
        """Return when the goal has changed or the engine has ended. Raises EngineFailed if it is lifeless."""
        instance, rules = self.instance, self._dock.config.liveness
        watching: list[asyncio.Task[None]] = []
        if rules.interval_s and instance.level == 0:
            vitals = Vitals(f"http://{instance.host}:{run.port}", run.api_key, instance.plan.health_path)
            alive = watch_liveness(self._dock.client, vitals, rules, time.monotonic)
            watching.append(asyncio.create_task(alive, name=f"liveness of {run.pid}"))
        try:
            news: list[asyncio.Future[Any]] = [run.exited, self._changed, *watching]
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
        if self._wanted_level > self.instance.level:
            if await self._empty(run):
                await self._fall_asleep(run, self._wanted_level)
            if self._wanted_level == self.instance.level == 0 and not self._is_over:
                self._open_gate(run)  # somebody wants it awake before it slept, or it wouldn't sleep
                self.instance.announce()  # whoever sent it to sleep need not wait any longer
        else:
            await self._wake_up(run)

    async def _empty(self, run: EngineRun) -> bool:
        """Wait for the leases that are out; False if the goal changes or the engine ends before."""
        gate, wanted = self.instance.gate, self._wanted_level
        while gate.in_flight:
            await asyncio.wait(
                (gate.drained(), run.exited, self._changed), return_when=asyncio.FIRST_COMPLETED
            )
            if run.exited.done() or self._is_over or self._wanted_level != wanted:
                return False
        return True

    async def _fall_asleep(self, run: EngineRun, level: int) -> None:
        try:
            if not await run.unless_exited(self._sleeper(run).sleep(level)):
                return
        except SleepRefused as error:
            logger.warning("instance=%s doesn't sleep: %s", self.instance.instance_id, error)
            self.sleep_error = str(error)
            self._wanted_level = self.instance.level
            self.instance.announce()
            return
        self.instance.level = level
        if self.instance.state is InstanceState.RUNNING:
            self.instance.set_state(InstanceState.SLEEPING, f"asleep at level {level}")
        else:
            self.instance.announce()

    async def _wake_up(self, run: EngineRun) -> None:
        """An engine that can't be woken is replaced by a new process; who waits goes on waiting."""
        instance = self.instance
        level = instance.level
        instance.set_state(InstanceState.WAKING, f"waking from level {level}")
        try:
            if not await run.unless_exited(self._sleeper(run).wake(level)):
                return
        except SleepRefused as error:
            logger.warning("instance=%s is restarted: it can't be woken: %s", instance.instance_id, error)
            if not self._is_over:
                self._stop_reason = f"could not be woken: {error}"
                self._drain_timeout_s = 0.0
                self._want_new_life()
            return
        instance.level = 0
        if not self._is_over:
            instance.set_state(InstanceState.RUNNING, f"woken from level {level}")
            self._open_gate(run)

    def _sleeper(self, run: EngineRun) -> Sleeper:
        instance = self.instance
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
        instance = self.instance
        if not self._wanted_level:
            instance.gate.open(Endpoint(instance.host, run.port, run.api_key, instance.spawns))

    async def _drain(self, run: EngineRun) -> None:
        """Wait for the leases that are out, as long as the drain time allows and the engine lives."""
        gate = self.instance.gate
        gate.close()
        self.instance.set_state(InstanceState.STOPPING, self._stop_reason)
        began = time.monotonic()
        while gate.in_flight and not run.exited.done():
            remaining_s = began + self._drain_timeout_s - time.monotonic()
            if remaining_s <= 0:
                logger.warning(
                    "instance=%s stops with %d requests in flight", gate.instance_id, gate.in_flight
                )
                return
            await asyncio.wait(
                (gate.drained(), run.exited, self._changed),
                timeout=None if math.isinf(remaining_s) else remaining_s,
                return_when=asyncio.FIRST_COMPLETED,
            )

    async def _end_run(self, grace_s: float) -> InstanceFailure | None:
        """End what runs, if anything does. A failure only if it could not be ended."""
        if self._run is None:
            return None
        stuck = await self._run.end(grace_s)
        self._run = None
        self.instance.pid = self.instance.pid_start_time = self.instance.memory_bytes = None
        if stuck is not None:
            self._hold_port(None)  # but it stays taken in the range: somebody may still listen there
        return stuck

    def _conclude(self, failure: InstanceFailure | None, *, was_ready: bool) -> None:
        """The life is over: say how, and give the port back unless another life follows. No await in here."""
        instance = self.instance
        delay_s = None
        # The fleet starts a model's replicas, when it has room for them.
        if failure is not None and not self._is_over and instance.spec.profile is None:
            delay_s = self._restarts.next_delay_s(time.monotonic(), was_ready=was_ready)
            if delay_s is not None:
                self._resume_at = time.monotonic() + delay_s
                self._stop_reason = f"restarted after {failure.failure_class}: {failure.message}"
                self._wanted_life += 1
        another_follows = self._wanted_life != self._life
        if not another_follows and self._desired is Desired.RUNNING:
            self._desired = Desired.STOPPED  # a failed engine is started again on request only
        if self._port is not None and not another_follows:
            self._dock.ports.release(self._port)
            self._hold_port(None)
        self.ended_life = self._life
        if failure is not None:
            again = "" if delay_s is None else f"; it is started again in {delay_s:g} s"
            instance.set_state(InstanceState.FAILED, explain(failure, num_lines=1) + again, failure)
        elif instance.state is not InstanceState.STOPPED:
            instance.set_state(InstanceState.STOPPED, self._stop_reason)
        else:  # stopped before the next life began
            instance.announce()
        if another_follows:
            return
        self.log.lines.close()
        if failure is not None:
            message = f"instance {instance.instance_id!r} failed: {explain(failure)}"
            instance.gate.reject(lambda: InstanceFailedToStart(message))

    # Small questions and acts.

    @property
    def _is_backing_off(self) -> bool:
        """Whether it has failed and will start again by itself."""
        is_failed = self.instance.state is InstanceState.FAILED
        return is_failed and self._desired is Desired.RUNNING and self._wanted_life != self.ended_life

    @property
    def _is_over(self) -> bool:
        return self._desired is not Desired.RUNNING or self._wanted_life != self._life

    @property
    def _held_port(self) -> int:
        if self._port is None:
            raise RuntimeError("no port is held")
        return self._port

    def _hold_port(self, port: int | None) -> None:
        self._port = port
        self.instance.port = port

    def _change_port(self) -> None:
        lost = self._port
        try:
            port = self._dock.ports.take(avoid=lost)
        except NoCapacity as error:
            message = f"port {lost} is in use, and {error.message}"
            raise EngineFailed(InstanceFailure(FailureClass.PORT_IN_USE, message)) from error
        if lost is not None:
            self._dock.ports.release(lost)
        self._hold_port(port)

    def _want_new_life(self) -> None:
        self._desired = Desired.RUNNING
        self._wanted_life += 1
        self._announce()

    def _announce(self) -> None:
        self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()

    def _wrong_state(self, wish: str) -> WrongState:
        what = "being deleted" if self._desired is Desired.DELETED else self.instance.state.value
        return WrongState(f"instance {self.instance.instance_id!r} can't {wish}: it is {what}")

    def _refusal(self, shutting_down: bool) -> ManagerError:
        if shutting_down:
            return ShuttingDown("Berth is shutting down", retry_after_s=5.0)
        return InstanceNotRunning(
            f"instance {self.instance.instance_id!r} is not running any more: {self._stop_reason}"
        )
