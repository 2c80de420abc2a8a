"""One run of an instance, from the spawn to an empty process group; only it changes the state meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from functools import partial
from typing import Any

from instance_manager.backends import backend_of
from instance_manager.lifecycle.context import SupervisorContext
from instance_manager.lifecycle.desired_state import DesiredPhase, DesiredState
from instance_manager.lifecycle.engine_handle import EngineFailed, EngineHandle
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.liveness import LivenessFailed, ProbeTarget, watch_liveness
from instance_manager.lifecycle.port_lease import PortLease
from instance_manager.lifecycle.reservation import change_port, reserve
from instance_manager.lifecycle.sleep_controller import SleepController
from instance_manager.lifecycle.spawning import container_runtime
from instance_manager.lifecycle.stop_command import ask_to_end
from instance_manager.process.containers.command import run_id_of
from instance_manager.process.logs import LogFile
from instance_manager.process.process_tree import ProcessId, kill_until_gone
from instance_manager.state.recovery import SWEEP_DEADLINE_S, FoundRun, RecoveryAction
from instance_manager.types import Container, FailureClass, InstanceFailure, InstanceState

logger = logging.getLogger("berth.manager")

_PORT_ATTEMPTS = 3  # processes spawned per run because another program took the port
# An engine that is still starting has no clients, may not handle SIGTERM yet, and its workers don't know
# of it at all: it gets little time before the whole group is killed.
_STARTING_GRACE_S = 1.0


class _StartCancelled(Exception):
    """The desired state changed before the engine was ready."""


class RunLoop:
    """Its `run` is called once. Over when another run, or none, is desired, or when the engine has failed."""

    def __init__(
        self,
        instance: Instance,
        log: LogFile,
        context: SupervisorContext,
        desired: DesiredState,
        port_lease: PortLease,
        found: FoundRun | None = None,
    ) -> None:
        """`found`: the process to adopt instead of spawning one."""
        self.number = desired.run_number
        self.was_ready = found is not None and found.was_ready
        self._found = found
        self._instance = instance
        self._log = log
        self._context = context
        self._desired = desired
        self._port_lease = port_lease
        self._engine: EngineHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether the desired state no longer includes this run."""
        return self._desired.phase is not DesiredPhase.RUNNING or self._desired.run_number != self.number

    async def run(self) -> InstanceFailure | None:
        """Returns the failure that ended the run; None = it ended as requested."""
        instance = self._instance
        if instance.state.is_terminal and not self.is_over:
            instance.set_state(InstanceState.STARTING, self._desired.reason)
        stop_grace_s = self._context.config.stop_grace_s
        grace_s = stop_grace_s if self.was_ready else min(_STARTING_GRACE_S, stop_grace_s)
        failure: InstanceFailure | None = None
        try:
            engine = await self._start()
            grace_s, self.was_ready = stop_grace_s, True
            await self._watch(engine)
            await self._drain(engine)
            if await self._detach():
                return None
            self._set_stopping()
        except _StartCancelled:
            if await self._detach():
                return None
            self._set_stopping()
        except EngineFailed as error:
            failure = error.failure
        except Exception as error:
            logger.exception("instance=%s: the supervisor failed", instance.instance_id)
            failure = InstanceFailure(FailureClass.CRASHED, f"an error in Berth itself: {error!r}")
        instance.gate.close()
        return await self._end_engine(grace_s) or failure

    def abandon(self) -> None:
        """Kill the engine without waiting: the task was cancelled."""
        if self._engine is not None:
            self._engine.abandon()

    async def _start(self) -> EngineHandle:
        """Spawn and wait until ready; try another port if another program took ours."""
        if self._found is not None and (adopted := await self._recover(self._found)) is not None:
            return adopted
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            engine = await self._spawn()
            try:
                await self._wait_healthy(engine)
                self._set_ready(engine, "healthy")
                return engine
            except EngineFailed as error:
                if error.failure.failure_class is not FailureClass.PORT_IN_USE or attempt == _PORT_ATTEMPTS:
                    raise
            await self._end_engine(grace_s=0)
            lost = self._port_lease.port
            change_port(self._port_lease)
            self._instance.set_state(InstanceState.STARTING, f"port {lost} was taken by another program")
        raise RuntimeError("unreachable: the last attempt returns or raises")

    async def _recover(self, found: FoundRun) -> EngineHandle | None:
        """Adopt a previous Berth process's engine; None = a new one must be spawned. Raises EngineFailed."""
        instance = self._instance
        if found.action is not RecoveryAction.ADOPT:
            if found.secrets is not None:
                await self._kill_leftovers(found.secrets.token, found.engine)
                await self._remove_container(found.secrets.token)
            if self.is_over:
                raise _StartCancelled
            if found.action is RecoveryAction.START:
                return None
            message = "it was running when the previous Berth process ended and can't be found any more"
            raise EngineFailed(InstanceFailure(FailureClass.LOST, message))
        engine = self._engine = EngineHandle.adopt(
            instance, self._log, self._port_lease.held, found, self._context.config
        )
        self._publish_process(engine)
        await self._wait_healthy(engine)
        if instance.plan.sleep_style is not None:
            await self._sleep_controller(engine).sync_level()
        idle_since = instance.gate.last_active if found.was_ready else None
        self._set_ready(engine, f"adopted process {engine.pid} of a previous Berth process", idle_since)
        return engine

    async def _kill_leftovers(self, token: str, engine: ProcessId | None) -> None:
        if not await kill_until_gone(token, engine, SWEEP_DEADLINE_S):
            message = (
                "processes that a previous Berth process started still exist "
                f"{SWEEP_DEADLINE_S:.0f} s after SIGKILL"
            )
            raise EngineFailed(InstanceFailure(FailureClass.UNHEALTHY, message))

    async def _remove_container(self, token: str) -> None:
        """A runtime that doesn't answer can't say whether there is one: that must not stop a new start."""
        plan = self._instance.plan.container
        if plan is not None:
            runtime = container_runtime(plan.runtime, self._context.config)
            await runtime.remove_run(run_id_of(token), SWEEP_DEADLINE_S)

    async def _spawn(self) -> EngineHandle:
        instance, context = self._instance, self._context
        if self.is_over:
            raise _StartCancelled
        await reserve(instance, self._log, context, self._port_lease)
        if self.is_over:
            raise _StartCancelled
        engine = await EngineHandle.spawn(instance, self._log, self._port_lease.held, context.config)
        self._engine = engine
        instance.generation += 1
        self._publish_process(engine)
        instance.set_state(InstanceState.HEALTH_CHECKING, f"process {engine.pid} spawned")
        return engine

    def _publish_process(self, engine: EngineHandle) -> None:
        start_ticks = ProcessId.of(engine.pid).start_ticks
        self._instance.set_process(engine.pid, engine.pid_start_time, start_ticks)
        if engine.located is not None:
            engine.located.add_done_callback(partial(self._publish_container, engine))

    def _publish_container(self, engine: EngineHandle, located: asyncio.Task[Container | None]) -> None:
        if self._engine is engine and not located.cancelled() and (container := located.result()) is not None:
            self._instance.set_container(container)

    async def _wait_healthy(self, engine: EngineHandle) -> None:
        instance, context, desired = self._instance, self._context, self._desired
        instance.set_load_reader(engine.load_progress)
        is_ready = False
        while not (is_ready or self.is_over):  # another sleep level is no reason to give up
            is_ready = await engine.wait_ready(context.client, instance, context.config, desired.changed)
        if not is_ready:
            raise _StartCancelled
        if not instance.plan.must_name_model:
            instance.reported_name = await engine.reported_name(context.client, instance)

    def _set_ready(self, engine: EngineHandle, reason: str, idle_since: float | None = None) -> None:
        is_awake = self._instance.level == 0
        self._instance.set_state(InstanceState.RUNNING if is_awake else InstanceState.SLEEPING, reason)
        if is_awake:
            self._open_gate(engine, idle_since)

    async def _watch(self, engine: EngineHandle) -> None:
        """Return when the run is to end. Raises EngineFailed when the engine exits by itself."""
        while not self.is_over:
            if engine.exited.done():
                self._instance.gate.close()
                raise await engine.post_mortem(was_ready=True)
            if self._desired.sleep_level != self._instance.level:
                await self._sleep_controller(engine).change_level()
                continue
            await self._wait_for_change(engine)

    async def _wait_for_change(self, engine: EngineHandle) -> None:
        """Return when the desired state changes or the engine exits. Raises EngineFailed if a probe fails."""
        instance, rules = self._instance, self._context.config.liveness
        watchers: list[asyncio.Task[None]] = []
        if rules.interval_s and instance.level == 0:
            target = ProbeTarget(
                f"http://{instance.host}:{engine.port}",
                engine.api_key,
                instance.plan.health_path,
                backend_of(instance.spec.engine),
            )
            liveness = watch_liveness(self._context.client, target, rules, time.monotonic)
            watchers.append(asyncio.create_task(liveness, name=f"liveness of {engine.pid}"))
        try:
            changes: list[asyncio.Future[Any]] = [engine.exited, self._desired.changed, *watchers]
            await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
            for task in watchers:
                if task.done() and not engine.exited.done():
                    task.result()
        except LivenessFailed as error:
            instance.gate.close()
            raise engine.failed(FailureClass.UNHEALTHY, str(error)) from error
        finally:
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    def _sleep_controller(self, engine: EngineHandle) -> SleepController:
        client = self._context.client
        return SleepController(
            engine, self._instance, self._desired, client, lambda: self.is_over, self._open_gate
        )

    def _open_gate(self, engine: EngineHandle, idle_since: float | None = None) -> None:
        instance = self._instance
        if not self._desired.sleep_level:
            instance.gate.open(instance.endpoint(engine.port, engine.api_key), idle_since=idle_since)

    async def _drain(self, engine: EngineHandle) -> None:
        """Wait until no lease is out, the drain time has passed or the engine exits."""
        gate = self._instance.gate
        gate.close()
        if self._desired.phase is not DesiredPhase.DETACHED:
            self._set_stopping()
        began = time.monotonic()
        while gate.in_flight and not engine.exited.done():
            remaining_s = began + self._desired.drain_timeout_s - time.monotonic()
            if remaining_s <= 0:
                logger.warning(
                    "instance=%s stops with %d requests in flight", gate.instance_id, gate.in_flight
                )
                return
            await asyncio.wait(
                (gate.drained(), engine.exited, self._desired.changed),
                timeout=None if math.isinf(remaining_s) else remaining_s,
                return_when=asyncio.FIRST_COMPLETED,
            )

    def _set_stopping(self) -> None:
        state = self._instance.state
        if not state.is_terminal and state is not InstanceState.STOPPING:
            self._instance.set_state(InstanceState.STOPPING, self._desired.reason)

    async def _detach(self) -> bool:
        """Leave the engine to the next Berth process, if that is desired; False = it must be ended."""
        if self._desired.phase is not DesiredPhase.DETACHED:
            return False
        if self._engine is None or self._instance.state.is_terminal:
            return True  # the next Berth process starts it
        if not self._engine.can_be_detached:
            self._desired.phase = DesiredPhase.DELETED  # from the registry; the stored record stays
            self._desired.reason = "Berth is shutting down, and an engine without a shim can't be adopted"
            return False
        await self._engine.detach()
        self._engine = None
        return True

    async def _end_engine(self, grace_s: float) -> InstanceFailure | None:
        """End the engine, if there is one. Returns a failure only if it could not be ended."""
        if self._engine is None:
            return None
        grace_s = await ask_to_end(self._engine, self._instance, self._log, self._context.config, grace_s)
        stuck = await self._engine.end(grace_s)
        self._engine = None
        self._instance.set_process(None, None, None)
        if stuck is not None:
            self._port_lease.abandon()  # the surviving process may still listen on it
        return stuck
