"""One supervisor per instance: it owns the process and alone moves the instance's state.

Others say what they want (`request_start`, `request_stop` …: synchronous, they only write the goal) and wait
for an outcome. One task compares goal and reality and acts until they agree. A *life* goes from a spawn to
an empty process group; each wish for a new process asks for a life with a higher number, so that "this
life is over" stays true whatever is asked for next.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from dataclasses import dataclass
from enum import Enum, auto

import httpx

from instance_manager.environment import engine_environment
from instance_manager.errors import (
    InstanceFailedToStart,
    InstanceNotRunning,
    ManagerError,
    NoCapacity,
    ShuttingDown,
    WrongState,
)
from instance_manager.failures import LOG_TAIL_LINES, classify_exit, explain
from instance_manager.health import Probe, WrongEngine, wait_until_ready
from instance_manager.instance import Instance
from instance_manager.logs import LogFile
from instance_manager.ports import PortRange
from instance_manager.process import EngineProcess
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
    """What is being waited for isn't wanted any more."""


class _EngineFailed(Exception):
    def __init__(self, failure: InstanceFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Supervisor:
    """See the module. Made with the port taken and the instance in `starting`; then `run` as a task."""

    def __init__(self, instance: Instance, log: LogFile, dock: Dock, port: int) -> None:
        self.instance = instance
        self.log = log
        self.ended_life = 0  # number of the last life that is over
        self.is_forgotten = False  # set by the manager once a deleted instance is out of its books
        self._dock = dock
        self._config = dock.config
        self._port: int | None = port
        self._desired = Desired.RUNNING
        self._wanted_life = 1
        self._life = 0
        self._stop_reason = ""
        self._drain_timeout_s = 0.0
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._process: EngineProcess | None = None
        self._follower: asyncio.Task[None] | None = None
        self._log_mark = 0  # number of the last log line before the present process

    # What others may ask for.

    @property
    def wants_running(self) -> bool:
        """Whether a request may wait: the instance is running or will be."""
        return self._desired is Desired.RUNNING

    @property
    def is_settled(self) -> bool:
        """Whether nothing will change until somebody asks for something, or the engine crashes."""
        if self._desired is Desired.RUNNING:
            return self.instance.state is InstanceState.RUNNING and self._life == self._wanted_life
        return self.ended_life == self._wanted_life

    def request_start(self) -> None:
        """Begin a new life, from a terminal state only. Raises WrongState or NoCapacity."""
        if self._desired is not Desired.STOPPED or not self.instance.state.is_terminal:
            raise self._wrong_state("be started")
        if self._port is None:
            self._hold_port(self._dock.ports.take())
        self._want_new_life()
        self.instance.set_state(InstanceState.STARTING, "started by request")

    def request_restart(self) -> int:
        """End the present life and begin another; returns the number of the one that ends.

        Requests that come meanwhile wait. Raises WrongState while the instance is being stopped or deleted.
        """
        if self._desired is not Desired.RUNNING:
            raise self._wrong_state("be restarted")
        ending = self._wanted_life
        self.instance.gate.close()
        self._stop_reason = "restarted by request"
        self._drain_timeout_s = self._config.drain_timeout_s
        self._want_new_life()
        return ending

    def request_stop(
        self,
        reason: str,
        *,
        drain_timeout_s: float,
        delete: bool = False,
        shutting_down: bool = False,
    ) -> int:
        """Accept nothing more from now on, then drain and end; returns the number of the life that ends.

        Asked again with a shorter drain time, the shorter one holds.
        """
        gate = self.instance.gate
        if self._desired is Desired.RUNNING:
            self._stop_reason = reason
            self._drain_timeout_s = drain_timeout_s
            self._desired = Desired.STOPPED
        self._drain_timeout_s = min(self._drain_timeout_s, drain_timeout_s)
        if delete:
            self._desired = Desired.DELETED
        gate.close()
        gate.reject(lambda: self._refusal(shutting_down))
        if self.instance.state is InstanceState.FAILED and not delete and not shutting_down:
            self.instance.set_state(InstanceState.STOPPED, reason)
        self._announce()
        return self._wanted_life

    async def ended(self, life: int) -> None:
        """Wait until that life is over: its process group is gone."""
        while self.ended_life < life:
            await self.instance.changed()

    # The task.

    async def run(self) -> None:
        """Pursue the goal until the instance is deleted or the task is cancelled."""
        try:
            while self._desired is not Desired.DELETED or self._wanted_life != self.ended_life:
                if self._wanted_life != self.ended_life:
                    self._life = self._wanted_life
                    await self._live()
                else:
                    await asyncio.wait((self._changed,))
        finally:
            if self._process is not None:  # only a cancelled task leaves one: nothing can be awaited here
                self._process.kill_now()
                self.log.finish()

    async def _live(self) -> None:
        """One life, from a spawn to an empty process group."""
        instance = self.instance
        if instance.state.is_terminal:
            instance.set_state(InstanceState.STARTING, self._stop_reason)
        failure: InstanceFailure | None = None
        grace_s = min(_STARTING_GRACE_S, self._config.stop_grace_s)
        try:
            await self._start()
            grace_s = self._config.stop_grace_s
            await self._watch()
            await self._drain()
        except _GoalChanged:
            instance.set_state(InstanceState.STOPPING, self._stop_reason)
        except _EngineFailed as error:
            failure = error.failure
        except Exception as error:
            logger.exception("instance=%s: the supervisor failed", instance.instance_id)
            failure = InstanceFailure(FailureClass.CRASHED, f"an error in Berth itself: {error!r}")
        instance.gate.close()
        failure = await self._end_process(grace_s) or failure
        self._conclude(failure)

    async def _start(self) -> None:
        """Spawn and wait for health; again on another port if someone else took ours."""
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            await self._spawn()
            try:
                await self._until_ready()
                return
            except _EngineFailed as error:
                if error.failure.failure_class is not FailureClass.PORT_IN_USE or attempt == _PORT_ATTEMPTS:
                    raise
            lost = self._port
            self._change_port()
            self.instance.set_state(InstanceState.STARTING, f"port {lost} was taken by another program")

    async def _spawn(self) -> None:
        instance, plan = self.instance, self.instance.plan
        if self._is_over:
            raise _GoalChanged
        if self._port is None or not self._dock.ports.is_bindable(self._port):
            self._change_port()
        port = self._held_port
        self._api_key = secrets.token_urlsafe(24)
        env = engine_environment(
            os.environ,
            plan.env,
            self._config.engine_env,
            instance.spec.env,
            instance_id=instance.instance_id,
            token=secrets.token_hex(16),
            api_key=self._api_key,
            devices=instance.spec.devices,
        )
        argv = plan.argv(instance.host, port)
        instance.command = argv
        self._log_mark = self.log.lines.last_number
        output = await self.log.open_for_engine()
        try:
            self._process = await EngineProcess.spawn(argv, env, plan.cwd, output)
        except OSError as error:
            raise _EngineFailed(
                InstanceFailure(
                    FailureClass.BAD_ARGUMENTS, f"{argv[0]!r} can't be run: {error.strerror or error}"
                )
            ) from error
        finally:
            os.close(output)
        self._follower = asyncio.create_task(self.log.follow(), name=f"log of {instance.instance_id}")
        instance.spawns += 1
        instance.pid, instance.pid_start_time = self._process.pid, self._process.start_time
        instance.set_state(InstanceState.HEALTH_CHECKING, f"process {instance.pid} spawned")

    async def _until_ready(self) -> None:
        """Race health against the exit, the deadline and a change of mind; open the gate if health wins."""
        process, instance = self._running_process, self.instance
        probe = Probe(
            instance.host,
            self._held_port,
            process.pid,
            self._api_key,
            instance.plan.health_path,
            instance.served_model_name if instance.plan.must_name_model else None,
        )
        started = time.monotonic()
        probing = asyncio.create_task(wait_until_ready(self._dock.client, probe))
        try:
            while True:
                if self._is_over:
                    raise _GoalChanged
                if process.exited.done():
                    raise await self._post_mortem(was_ready=False)
                if probing.done():
                    probing.result()
                    break
                remaining_s = self._start_deadline(started) - time.monotonic()
                if remaining_s <= 0:
                    raise self._failed(FailureClass.START_TIMEOUT, self._timeout_message(started))
                await asyncio.wait(
                    (probing, process.exited, self._changed),
                    timeout=remaining_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        except WrongEngine as error:
            raise self._failed(FailureClass.UNHEALTHY, str(error)) from error
        finally:
            probing.cancel()
            await asyncio.wait((probing,))
            if not probing.cancelled():
                probing.exception()  # seen, also when the exit was noticed first
        instance.set_state(InstanceState.RUNNING, "healthy")
        instance.gate.open(Endpoint(instance.host, self._held_port, self._api_key, instance.spawns))

    async def _watch(self) -> None:
        """Return when the goal changes. Raises _EngineFailed when the engine ends by itself."""
        exited = self._running_process.exited
        while not self._is_over:
            if exited.done():
                self.instance.gate.close()
                raise await self._post_mortem(was_ready=True)
            await asyncio.wait((exited, self._changed), return_when=asyncio.FIRST_COMPLETED)

    async def _drain(self) -> None:
        """Wait for the leases that are out, as long as the drain time allows and the engine lives."""
        instance, exited = self.instance, self._running_process.exited
        instance.gate.close()
        instance.set_state(InstanceState.STOPPING, self._stop_reason)
        began = time.monotonic()
        while instance.gate.in_flight and not exited.done():
            remaining_s = began + self._drain_timeout_s - time.monotonic()
            if remaining_s <= 0:
                logger.warning(
                    "instance=%s stops with %d requests in flight",
                    instance.instance_id,
                    instance.gate.in_flight,
                )
                return
            await asyncio.wait(
                (instance.gate.drained(), exited, self._changed),
                timeout=remaining_s,
                return_when=asyncio.FIRST_COMPLETED,
            )

    async def _end_process(self, grace_s: float) -> InstanceFailure | None:
        """End the group and read the log to its end. A failure only if the group outlives SIGKILL."""
        process = self._process
        if process is None:
            return None
        gone = await process.end(grace_s)
        self.log.finish()
        if self._follower is not None:
            await asyncio.wait((self._follower,))
            if error := self._follower.exception():
                logger.error("instance=%s: log not followed: %r", self.instance.instance_id, error)
        self._process = self._follower = None
        self.instance.pid = self.instance.pid_start_time = self.instance.memory_bytes = None
        if gone:
            return None
        self._hold_port(None)  # but it stays taken in the range: somebody may still listen there
        return InstanceFailure(FailureClass.UNHEALTHY, f"process group {process.pid} survived SIGKILL")

    async def _post_mortem(self, *, was_ready: bool) -> _EngineFailed:
        """What the engine died of, asked once nobody of its group can write to the log any more."""
        returncode = self._running_process.exited.result()
        stuck = await self._end_process(grace_s=0)
        return _EngineFailed(stuck or classify_exit(returncode, self._log_tail(), was_ready=was_ready))

    def _conclude(self, failure: InstanceFailure | None) -> None:
        """The life is over: say how, and give the port back unless another life follows. No await in here."""
        instance = self.instance
        another_follows = self._wanted_life != self._life
        if not another_follows and self._desired is Desired.RUNNING:
            self._desired = Desired.STOPPED  # a failed engine is started again on request only
        if self._port is not None and not another_follows:
            self._dock.ports.release(self._port)
            self._hold_port(None)
        self.ended_life = self._life
        if failure is not None:
            instance.set_state(InstanceState.FAILED, explain(failure, num_lines=1), failure)
        else:
            instance.set_state(InstanceState.STOPPED, self._stop_reason)
        if another_follows:
            return
        self.log.lines.close()
        if failure is not None:
            instance.gate.reject(lambda: InstanceFailedToStart(self._failure_message(failure)))

    # Small questions and acts.

    @property
    def _is_over(self) -> bool:
        return self._desired is not Desired.RUNNING or self._wanted_life != self._life

    @property
    def _running_process(self) -> EngineProcess:
        if self._process is None:
            raise RuntimeError("no process was spawned")
        return self._process

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
            raise self._failed(
                FailureClass.PORT_IN_USE, f"port {lost} is in use, and {error.message}"
            ) from error
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

    def _start_deadline(self, started: float) -> float:
        """A start that shows progress in its log gets more time, up to the cap. Monotonic seconds."""
        latest_sign = max(started, self.log.grown_at)
        return min(latest_sign + self._config.start_timeout_s, started + self._config.start_timeout_cap_s)

    def _timeout_message(self, started: float) -> str:
        return (
            f"not ready after {time.monotonic() - started:.1f} s, the last "
            f"{time.monotonic() - max(started, self.log.grown_at):.1f} s without a line in its log; "
            "START_TIMEOUT sets how long an engine may be silent"
        )

    def _failed(self, failure_class: FailureClass, message: str) -> _EngineFailed:
        return _EngineFailed(InstanceFailure(failure_class, message, log_tail=tuple(self._log_tail())))

    def _log_tail(self) -> list[str]:
        return self.log.lines.since(self._log_mark)[-LOG_TAIL_LINES:]

    def _failure_message(self, failure: InstanceFailure) -> str:
        return f"instance {self.instance.instance_id!r} failed: {explain(failure)}"

    def _wrong_state(self, wish: str) -> WrongState:
        instance = self.instance
        what = "being deleted" if self._desired is Desired.DELETED else instance.state.value
        return WrongState(f"instance {instance.instance_id!r} can't {wish}: it is {what}")

    def _refusal(self, shutting_down: bool) -> ManagerError:
        if shutting_down:
            return ShuttingDown("Berth is shutting down", retry_after_s=5.0)
        return InstanceNotRunning(
            f"instance {self.instance.instance_id!r} is not running any more: {self._stop_reason}"
        )
