"""One supervisor per instance: it owns the engine process and changes the instance's state.

Callers request what they want (`request_start`, `request_stop` …: synchronous, they only write the desired
state) and wait for the outcome. One task reconciles: it compares desired and actual state and acts until they
agree. A *run* goes from a spawn to an empty process group. Each request for a new process increments the
number of the desired run, so "run 3 is over" stays true whatever is requested next. (`Instance.generation`
counts processes: a run that loses the race for its port needs several, and the count outlives Berth.)
"""

from __future__ import annotations

import asyncio
import logging
import time

from instance_manager.errors import InstanceNotRunning, ManagerError, ShuttingDown
from instance_manager.lifecycle.context import SupervisorContext
from instance_manager.lifecycle.desired_state import DesiredPhase, DesiredState, wrong_state
from instance_manager.lifecycle.failures import explain, start_error
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.port_lease import PortLease
from instance_manager.lifecycle.restart_backoff import RestartBackoff
from instance_manager.lifecycle.run_loop import RunLoop
from instance_manager.lifecycle.sleep_requests import SleepRequests
from instance_manager.process.logs import LogFile
from instance_manager.state.recovery import FoundRun, RecoveryAction
from instance_manager.types import InstanceFailure, InstanceState

logger = logging.getLogger("berth.manager")

_FINAL = frozenset({DesiredPhase.DELETED, DesiredPhase.DETACHED})


class Supervisor:
    """Created with a port taken and the instance in `starting`; then `run` as a task."""

    def __init__(
        self,
        instance: Instance,
        log: LogFile,
        context: SupervisorContext,
        port: int | None,
        found: FoundRun | None = None,
    ) -> None:
        """`found`: what a previous Berth process left of the instance; the first run continues with it."""
        self.instance = instance
        self.log = log
        self.ended_run = 0  # number of the last run that is over
        self.is_removed = False  # set once a deleted instance has left the registry
        self._context = context
        self._desired = DesiredState()
        self._port_lease = PortLease(context.ports, instance, port)
        self._run_loop: RunLoop | None = None  # of the current run or the last one
        self._backoff = RestartBackoff(context.config.restart)  # unused if the fleet restarts it
        self._found: FoundRun | None = None
        self.sleep = SleepRequests(instance, self._desired, context.client, lambda: self._is_ending)
        if found is not None:
            self._resume(found)

    # Queries.

    @property
    def wants_running(self) -> bool:
        """Whether a request may wait: the instance is running or will be."""
        return self._desired.phase is DesiredPhase.RUNNING

    @property
    def should_run(self) -> bool:
        """Whether it runs or will run, under this Berth process or the next; this is stored."""
        return self._desired.phase in (DesiredPhase.RUNNING, DesiredPhase.DETACHED)

    @property
    def is_being_deleted(self) -> bool:
        """Whether it is removed as soon as its process has ended: it can't be started again."""
        return self._desired.phase is DesiredPhase.DELETED

    @property
    def is_settled(self) -> bool:
        """Whether nothing changes until the next request or a crash of the engine."""
        if self._desired.phase is DesiredPhase.RUNNING:
            is_up = self.instance.state in (InstanceState.RUNNING, InstanceState.SLEEPING)
            return is_up and not self._is_ending and self.instance.level == self._desired.sleep_level
        return self.ended_run == self._desired.run_number

    async def wait_ended(self, run_number: int) -> None:
        """Wait until this run is over and its process group empty."""
        while self.ended_run < run_number:
            await self.instance.wait_for_change()

    def request_start(self, *, on_demand: bool = False) -> None:
        """Start a new run, from a terminal state only. Raises WrongState or NoCapacity.

        `on_demand`: a request needs it, so earlier failures still count.
        """
        if not on_demand:
            self._backoff.reset()
        if self._is_backing_off:
            self._backoff.restart_at = None
            self._desired.notify()
            self.instance.set_state(InstanceState.STARTING, "started by request")
            return
        if self._desired.phase is not DesiredPhase.STOPPED or not self.instance.state.is_terminal:
            raise wrong_state(self.instance, self._desired, "be started")
        self._port_lease.acquire()
        self._desired.request_new_run()
        self.instance.set_state(InstanceState.STARTING, "started by request")

    def request_restart(self) -> int:
        """End the current run and start another; returns the number of the run that ends.

        Requests that arrive meanwhile wait. Raises WrongState while the instance is being stopped or deleted.
        """
        if self._desired.phase is not DesiredPhase.RUNNING:
            raise wrong_state(self.instance, self._desired, "be restarted")
        ending = self._desired.run_number
        self._backoff.reset()
        self.instance.gate.close()
        self._desired.reason = "restarted by request"
        self._desired.drain_timeout_s = self._context.config.drain_timeout_s
        self._desired.request_new_run()
        return ending

    def request_stop(
        self, reason: str, *, drain_timeout_s: float, delete: bool = False, shutting_down: bool = False
    ) -> int:
        """Accept no more requests, drain and end; returns the number of the run that ends.

        A second call can shorten the drain time, not extend it.
        """
        instance = self.instance
        self._desired.stop(reason, drain_timeout_s, delete=delete)
        instance.gate.close()
        instance.gate.reject(lambda: self._rejection(shutting_down))
        if instance.state is InstanceState.FAILED and not delete:
            self._backoff.reset()
            instance.failure = None  # it has been published
            instance.set_state(InstanceState.STOPPED, reason)
        self._desired.notify()
        return self._desired.run_number

    def request_detach(self, drain_timeout_s: float) -> int:
        """Accept no more requests, drain, and leave the engine to the next Berth process.

        Returns the number of the run that ends this way. An instance that is being stopped is stopped.
        """
        self._desired.detach(drain_timeout_s)
        self.instance.gate.close()
        self.instance.gate.reject(lambda: self._rejection(shutting_down=True))
        self._desired.notify()
        return self._desired.run_number

    # The task.

    async def run(self) -> None:
        """Reconcile until the instance is deleted or detached, or the task is cancelled."""
        desired = self._desired
        try:
            while desired.phase not in _FINAL or desired.run_number != self.ended_run:
                if desired.run_number != self.ended_run:
                    await self._wait_for_backoff()
                    run_loop = self._begin_run()
                    self._finish_run(run_loop, await run_loop.run())
                else:
                    await asyncio.wait((desired.changed,))
        finally:
            if self._run_loop is not None:
                self._run_loop.abandon()
            self.ended_run = desired.run_number  # so that `wait_ended` never waits for ever
            self.instance.notify()

    def _begin_run(self) -> RunLoop:
        """A run that was replaced before it began counts as ended: `wait_ended` may wait for it."""
        found, self._found = self._found, None
        if found is None:
            self._desired.sleep_level = self.instance.level = 0
        self._run_loop = RunLoop(
            self.instance, self.log, self._context, self._desired, self._port_lease, found
        )
        self.ended_run = self._run_loop.number - 1
        self.instance.notify()
        return self._run_loop

    async def _wait_for_backoff(self) -> None:
        """Wait out the back-off after a failure, unless the desired state changes or a start is requested."""
        desired = self._desired
        while (at := self._backoff.restart_at) is not None and desired.phase is DesiredPhase.RUNNING:
            if (wait_s := at - time.monotonic()) <= 0:
                return
            await asyncio.wait((desired.changed,), timeout=wait_s)

    def _finish_run(self, run_loop: RunLoop, failure: InstanceFailure | None) -> None:
        """Publish how the run ended, and release the port unless another run follows. Must not await."""
        instance, desired = self.instance, self._desired
        if desired.phase is DesiredPhase.DETACHED and failure is None:
            self.ended_run = run_loop.number
            instance.notify()
            return
        delay_s = None
        if failure is not None:
            delay_s = self._schedule_restart(run_loop, failure)
        elif run_loop.was_ready:
            self._backoff.record_start()
        another_follows = desired.run_number != run_loop.number
        if not another_follows and desired.phase is DesiredPhase.RUNNING:
            desired.phase = DesiredPhase.STOPPED  # it starts again only on request
        if not another_follows:
            self._port_lease.release()
        self.ended_run = run_loop.number
        if failure is not None:
            restart = "" if delay_s is None else f"; restarting in {delay_s:g} s"
            instance.set_state(InstanceState.FAILED, explain(failure, num_lines=1) + restart, failure)
        elif instance.state is not InstanceState.STOPPED:
            instance.set_state(InstanceState.STOPPED, desired.reason)
        else:  # stopped before the next run began
            instance.notify()
        if another_follows:
            return
        self.log.lines.close()
        if failure is not None:
            what = f"instance {instance.instance_id!r}"
            instance.gate.reject(lambda: start_error(what, failure, instance.instance_id))

    def _schedule_restart(self, run_loop: RunLoop, failure: InstanceFailure) -> float | None:
        """Request another run if the restart policy allows it; seconds until it begins, None = no restart."""
        if run_loop.is_over or self.instance.spec.profile is not None:
            return None  # the fleet starts a model's replicas, when it has capacity for them
        delay_s = self._backoff.record_failure(was_ready=run_loop.was_ready)
        if delay_s is not None:
            self._desired.reason = f"restarted after {failure.failure_class}: {failure.message}"
            self._desired.run_number += 1
        return delay_s

    def _resume(self, found: FoundRun) -> None:
        """Continue where a previous Berth process left off."""
        desired, instance = self._desired, self.instance
        if found.action is RecoveryAction.LEAVE:
            desired.phase = DesiredPhase.STOPPED
            self.ended_run = desired.run_number
            instance.level = 0
            self.log.lines.close()
            return
        self._found = found
        desired.sleep_level = instance.level = found.level
        if instance.state is InstanceState.STOPPING:
            desired.phase = DesiredPhase.STOPPED
            desired.reason = instance.status_reason
        elif found.action is RecoveryAction.START:
            desired.reason = "it was to run when the previous Berth process ended"

    @property
    def _is_ending(self) -> bool:
        """Whether the current run is to end, or the desired one hasn't begun."""
        return self._run_loop is None or self._run_loop.is_over

    @property
    def _is_backing_off(self) -> bool:
        """Whether it has failed and will be restarted automatically."""
        is_failed = self.instance.state is InstanceState.FAILED
        return is_failed and self.wants_running and self._desired.run_number != self.ended_run

    def _rejection(self, shutting_down: bool) -> ManagerError:
        if shutting_down:
            return ShuttingDown("Berth is shutting down", retry_after_s=5.0)
        return InstanceNotRunning(
            f"instance {self.instance.instance_id!r} is no longer running: {self._desired.reason}"
        )
