"""One life of an instance, from a spawn to an empty process group; meanwhile it alone moves the state."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any

from instance_manager.lifecycle.reservation import book, change_port
from instance_manager.lifecycle.context import SupervisorContext
from instance_manager.lifecycle.desired_state import Desired, Goal
from instance_manager.lifecycle.engine_handle import EngineFailed, EngineRun
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.liveness import LivenessFailed, ProbeTarget, watch_liveness
from instance_manager.lifecycle.port_lease import PortHold
from instance_manager.lifecycle.sleep_controller import SleepLevels
from instance_manager.process.logs import LogFile
from instance_manager.process.process_tree import ProcessId, kill_until_gone
from instance_manager.state.recovery import SWEEP_DEADLINE_S, FoundRun, RecoveryAction
from instance_manager.types import FailureClass, InstanceFailure, InstanceState

logger = logging.getLogger("berth.manager")

_PORT_ATTEMPTS = 3  # processes spawned per life because someone else took the port
# An engine that is still starting serves nobody and may not handle SIGTERM yet, while its workers do not
# know of it at all: it gets little time before the whole group is killed.
_STARTING_GRACE_S = 1.0


class _GoalChanged(Exception):
    """The start is not wanted any more."""


class Life:
    """Lived once, by `run`. Over when the goal wants another life, or none, or when the engine has failed."""

    def __init__(
        self,
        instance: Instance,
        log: LogFile,
        dock: SupervisorContext,
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
            change_port(self._berth)
            self._instance.set_state(InstanceState.STARTING, f"port {lost} was taken by another program")
        raise RuntimeError("unreachable: the last attempt returns or raises")

    async def _take_over(self, found: FoundRun) -> EngineRun | None:
        """Go on with an earlier Berth's process; None = there is to be a new one. Raises EngineFailed."""
        instance = self._instance
        if found.action is not RecoveryAction.ADOPT:
            if found.secrets is not None:
                await self._sweep(found.secrets.token, found.engine)
            if self.is_over:
                raise _GoalChanged
            if found.action is RecoveryAction.START:
                return None
            message = "it ran when an earlier Berth ended, and can't be found any more"
            raise EngineFailed(InstanceFailure(FailureClass.LOST, message))
        run = self._run = EngineRun.adopt(instance, self._log, self._berth.held, found)
        self._show_process(run)
        await self._until_healthy(run)
        if instance.plan.sleep_style is not None:
            await self._levels(run).find_out()
        self._is_ready(run, f"process {run.pid} taken over from an earlier Berth")
        return run

    async def _sweep(self, token: str, engine: ProcessId | None) -> None:
        if not await kill_until_gone(token, engine, SWEEP_DEADLINE_S):
            message = f"what an earlier Berth has left is still there {SWEEP_DEADLINE_S:.0f} s after SIGKILL"
            raise EngineFailed(InstanceFailure(FailureClass.UNHEALTHY, message))

    async def _spawn(self) -> EngineRun:
        instance, dock = self._instance, self._dock
        if self.is_over:
            raise _GoalChanged
        await book(instance, self._log, dock, self._berth)
        if self.is_over:
            raise _GoalChanged
        run = await EngineRun.spawn(instance, self._log, self._berth.held, dock.config)
        self._run = run
        instance.generation += 1
        self._show_process(run)
        instance.set_state(InstanceState.HEALTH_CHECKING, f"process {run.pid} spawned")
        return run

    def _show_process(self, run: EngineRun) -> None:
        instance = self._instance
        instance.pid, instance.pid_start_time = run.pid, run.pid_start_time
        instance.pid_start_ticks = ProcessId.of(run.pid).start_ticks

    async def _until_ready(self, run: EngineRun) -> None:
        await self._until_healthy(run)
        self._is_ready(run, "healthy")

    async def _until_healthy(self, run: EngineRun) -> None:
        instance, dock, goal = self._instance, self._dock, self._goal
        is_ready = False
        while not (is_ready or self.is_over):  # another level of sleep is no reason to give up
            is_ready = await run.until_ready(dock.client, instance, dock.config, goal.changed)
        if not is_ready:
            raise _GoalChanged
        if not instance.plan.must_name_model:
            instance.reported_name = await run.reported_name(dock.client, instance)

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
                await self._levels(run).change()
                continue
            await self._until_news(run)

    async def _until_news(self, run: EngineRun) -> None:
        """Return when the goal has changed or the engine has ended. Raises EngineFailed if it is lifeless."""
        instance, rules = self._instance, self._dock.config.liveness
        watching: list[asyncio.Task[None]] = []
        if rules.interval_s and instance.level == 0:
            vitals = ProbeTarget(f"http://{instance.host}:{run.port}", run.api_key, instance.plan.health_path)
            alive = watch_liveness(self._dock.client, vitals, rules, time.monotonic)
            watching.append(asyncio.create_task(alive, name=f"liveness of {run.pid}"))
        try:
            news: list[asyncio.Future[Any]] = [run.exited, self._goal.changed, *watching]
            await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
            for task in watching:
                if task.done() and not run.exited.done():
                    task.result()
        except LivenessFailed as error:
            instance.gate.close()
            raise run.failed(FailureClass.UNHEALTHY, str(error)) from error
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    def _levels(self, run: EngineRun) -> SleepLevels:
        return SleepLevels(
            run, self._instance, self._goal, self._dock.client, lambda: self.is_over, self._open_gate
        )

    def _open_gate(self, run: EngineRun) -> None:
        instance = self._instance
        if not self._goal.level:
            instance.gate.open(instance.endpoint(run.port, run.api_key))

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
