"""One supervisor per instance: it owns the process and, with its life, alone moves the instance's state.

Others say what they want (`request_start`, `request_stop` …: synchronous, they only write the goal) and wait
for an outcome. One task compares goal and reality and acts until they agree. A *life* goes from a spawn to
an empty process group; each wish for a new process asks for a life with a higher number, so that "this
life is over" stays true whatever is asked for next.
"""

from __future__ import annotations

import asyncio
import logging
import time

from instance_manager.errors import (
    InstanceNotRunning,
    ManagerError,
    ShuttingDown,
    WrongState,
)
from instance_manager.lifecycle.context import Dock
from instance_manager.lifecycle.desired_state import Desired, Goal
from instance_manager.lifecycle.failures import explain, start_error
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.port_hold import PortHold
from instance_manager.lifecycle.restarts import Restarts
from instance_manager.lifecycle.run_loop import Life
from instance_manager.lifecycle.sleeping import SLEEP_LEVELS, SleepController, SleepRefused
from instance_manager.process.logs import LogFile
from instance_manager.state.recovery import Fate, FoundRun
from instance_manager.types import InstanceFailure, InstanceState

logger = logging.getLogger("berth.manager")

_FINAL = frozenset({Desired.DELETED, Desired.DETACHED})


class Supervisor:
    """See the module. Made with the port taken and the instance in `starting`; then `run` as a task."""

    def __init__(
        self, instance: Instance, log: LogFile, dock: Dock, port: int | None, found: FoundRun | None = None
    ) -> None:
        """`found`: what an earlier Berth has left of it; its first life goes on with that."""
        self.instance = instance
        self.log = log
        self.ended_life = 0  # number of the last life that is over
        self.is_forgotten = False  # set by the manager once a deleted instance is out of its books
        self._dock = dock
        self._goal = Goal()
        self._berth = PortHold(dock.ports, instance, port)
        self._life: Life | None = None  # the present or the last one
        self._restarts = Restarts(dock.config.restart)
        self._is_looking = False  # whether the engine sleeps
        self._resume_at = 0.0  # monotonic seconds; before, no life begins
        self._found: FoundRun | None = None
        if found is not None:
            self._go_on(found)

    # What others may ask.

    @property
    def wants_running(self) -> bool:
        """Whether a request may wait: the instance is running or will be."""
        return self._goal.desired is Desired.RUNNING

    @property
    def is_to_run(self) -> bool:
        """Whether it runs, or will, be it under this Berth or the next: for its record."""
        return self._goal.desired in (Desired.RUNNING, Desired.DETACHED)

    @property
    def is_being_deleted(self) -> bool:
        """Whether it is forgotten as soon as its process is gone: nobody can start it again."""
        return self._goal.desired is Desired.DELETED

    @property
    def is_settled(self) -> bool:
        """Whether nothing will change until somebody asks for something, or the engine crashes."""
        if self._goal.desired is Desired.RUNNING:
            is_there = self.instance.state in (InstanceState.RUNNING, InstanceState.SLEEPING)
            return is_there and not self._is_ending and self.instance.level == self._goal.level
        return self.ended_life == self._goal.life

    async def ended(self, life: int) -> None:
        """Wait until that life is over: its process group is gone."""
        while self.ended_life < life:
            await self.instance.changed()

    def request_start(self) -> None:
        """Begin a new life, from a terminal state only. Raises WrongState or NoCapacity."""
        self._restarts.forgive()
        if self._is_backing_off:
            self._resume_at = 0.0
            self._goal.announce()
            return
        if self._goal.desired is not Desired.STOPPED or not self.instance.state.is_terminal:
            raise self._wrong_state("be started")
        self._berth.take()
        self._goal.want_new_life()
        self.instance.set_state(InstanceState.STARTING, "started by request")

    @property
    def is_asleep(self) -> bool:
        """Whether it sleeps or is about to, so that somebody has to wake it before it serves."""
        return self._goal.level > 0

    @property
    def sleep_error(self) -> str | None:
        """Why it does not sleep although it was asked to."""
        return self._goal.sleep_error

    def request_sleep(self, level: int) -> None:
        """Accept nothing more for now, drain, and give memory back: the KV cache's, at level 2 the weights'.

        Deeper than asked for is fine. Raises WrongState where it isn't running or can't sleep.
        """
        instance = self.instance
        if self._goal.desired is not Desired.RUNNING or self._is_ending or instance.state.is_terminal:
            raise self._wrong_state("be put to sleep")
        if instance.state in (InstanceState.STARTING, InstanceState.HEALTH_CHECKING):
            raise self._wrong_state("be put to sleep before it runs")
        if instance.plan.sleep_style is None:
            raise WrongState(
                f"instance {instance.instance_id!r} can't sleep: engine {instance.spec.engine!r} was started "
                "without --enable-sleep-mode; stop it instead"
            )
        self._goal.level = max(level, instance.level)
        self._goal.sleep_error = None
        instance.gate.close()
        self._goal.announce()

    def note_asleep(self, level: int) -> None:
        """Its engine was put to sleep behind our back, so deep: nothing is sent to it until it is woken."""
        instance, goal = self.instance, self._goal
        if goal.desired is not Desired.RUNNING or self._is_ending or instance.plan.sleep_style is None:
            return
        if instance.state is InstanceState.RUNNING and goal.level == 0:
            instance.gate.close()
            goal.level = instance.level = level
            instance.set_state(InstanceState.SLEEPING, f"put to sleep by its own route at level {level}")
            goal.announce()
        elif instance.state is InstanceState.SLEEPING and level > instance.level:
            goal.level = instance.level = level
            instance.updated({"sleep_level": level})
            goal.announce()

    async def look_at_sleep(self) -> None:
        """Ask its engine whether it sleeps although nobody here has asked it to."""
        instance = self.instance
        endpoint, style = instance.gate.endpoint, instance.plan.sleep_style
        if endpoint is None or style is None or self._is_looking:
            return
        url = f"http://{endpoint.host}:{endpoint.port}"
        sleeper = SleepController(self._dock.client, url, endpoint.api_key, style, endpoint.served_name)
        self._is_looking = True
        try:
            if await sleeper.is_asleep() and instance.gate.endpoint is endpoint:
                self.note_asleep(max(SLEEP_LEVELS))  # nobody knows how deep
        except SleepRefused as error:
            logger.info("instance=%s: %s", instance.instance_id, error)
        finally:
            self._is_looking = False

    def request_wake(self) -> None:
        """Serve again. Raises WrongState where there is nothing to wake."""
        if self._goal.desired is not Desired.RUNNING or self.instance.state.is_terminal:
            raise self._wrong_state("be woken")
        if self._goal.level:
            self._goal.level = 0
            self._goal.announce()

    def request_restart(self) -> int:
        """End the present life and begin another; returns the number of the one that ends.

        Requests that come meanwhile wait. Raises WrongState while the instance is being stopped or deleted.
        """
        if self._goal.desired is not Desired.RUNNING:
            raise self._wrong_state("be restarted")
        ending = self._goal.life
        self.instance.gate.close()
        self._goal.reason = "restarted by request"
        self._goal.drain_timeout_s = self._dock.config.drain_timeout_s
        self._goal.want_new_life()
        return ending

    def request_stop(
        self, reason: str, *, drain_timeout_s: float, delete: bool = False, shutting_down: bool = False
    ) -> int:
        """Accept nothing more from now on, then drain and end; returns the number of the life that ends.

        Asked again with a shorter drain time, the shorter one holds.
        """
        instance, goal = self.instance, self._goal
        if goal.desired is Desired.RUNNING:
            goal.reason = reason
            goal.drain_timeout_s = drain_timeout_s
            goal.desired = Desired.STOPPED
        goal.drain_timeout_s = min(goal.drain_timeout_s, drain_timeout_s)
        if delete:
            goal.desired = Desired.DELETED
        instance.gate.close()
        instance.gate.reject(lambda: self._refusal(shutting_down))
        if instance.state is InstanceState.FAILED and not delete:
            instance.failure = None  # events have told of it
            instance.set_state(InstanceState.STOPPED, reason)
        goal.announce()
        return goal.life

    def request_detach(self, drain_timeout_s: float) -> int:
        """Accept nothing more, drain, and leave the process to the next Berth; the life that ends so.

        What is being stopped is stopped.
        """
        instance, goal = self.instance, self._goal
        if goal.desired is Desired.RUNNING:
            goal.drain_timeout_s = drain_timeout_s
            goal.desired = Desired.DETACHED
        elif goal.desired is Desired.STOPPED:
            goal.desired = Desired.DELETED  # from this Berth's books; its record stays
        goal.drain_timeout_s = min(goal.drain_timeout_s, drain_timeout_s)
        instance.gate.close()
        instance.gate.reject(lambda: self._refusal(shutting_down=True))
        goal.announce()
        return goal.life

    # The task.

    async def run(self) -> None:
        """Pursue the goal until the instance is deleted or the task is cancelled."""
        goal = self._goal
        try:
            while goal.desired not in _FINAL or goal.life != self.ended_life:
                if goal.life != self.ended_life:
                    await self._back_off()
                    life = self._begin_wanted_life()
                    self._conclude(life, await life.run())
                else:
                    await asyncio.wait((goal.changed,))
        finally:
            if self._life is not None:
                self._life.abandon()
            self.ended_life = goal.life  # whoever waits must not wait for ever
            self.instance.announce()

    def _begin_wanted_life(self) -> Life:
        """A life that was replaced before it began counts as ended: somebody may wait for that."""
        found, self._found = self._found, None
        if found is None:
            self._goal.level = self.instance.level = 0
        self._life = Life(self.instance, self.log, self._dock, self._goal, self._berth, found)
        self.ended_life = self._life.number - 1
        self.instance.announce()
        return self._life

    async def _back_off(self) -> None:
        """After a failure that a restart answers: wait, unless the goal changes or somebody is impatient."""
        while (wait_s := self._resume_at - time.monotonic()) > 0 and self._goal.desired is Desired.RUNNING:
            await asyncio.wait((self._goal.changed,), timeout=wait_s)

    def _conclude(self, life: Life, failure: InstanceFailure | None) -> None:
        """The life is over: say how, and give the port back unless another life follows. No await in here."""
        instance = self.instance
        if self._goal.desired is Desired.DETACHED and failure is None:
            self.ended_life = life.number
            instance.announce()
            return
        delay_s = None if failure is None else self._answer(life, failure)
        another_follows = self._goal.life != life.number
        if not another_follows and self._goal.desired is Desired.RUNNING:
            self._goal.desired = Desired.STOPPED  # it is started again on request only
        if not another_follows:
            self._berth.release()
        self.ended_life = life.number
        if failure is not None:
            again = "" if delay_s is None else f"; it is started again in {delay_s:g} s"
            instance.set_state(InstanceState.FAILED, explain(failure, num_lines=1) + again, failure)
        elif instance.state is not InstanceState.STOPPED:
            instance.set_state(InstanceState.STOPPED, self._goal.reason)
        else:  # stopped before the next life began
            instance.announce()
        if another_follows:
            return
        self.log.lines.close()
        if failure is not None:
            what = f"instance {instance.instance_id!r} failed"
            instance.gate.reject(lambda: start_error(what, failure, instance.instance_id))

    def _answer(self, life: Life, failure: InstanceFailure) -> float | None:
        """Want another life after a failure, if the policy does; seconds until it begins, None = no other."""
        if life.is_over or self.instance.spec.profile is not None:
            return None  # the fleet starts a model's replicas, when it has room for them
        now = time.monotonic()
        delay_s = self._restarts.next_delay_s(now, was_ready=life.was_ready)
        if delay_s is not None:
            self._resume_at = now + delay_s
            self._goal.reason = f"restarted after {failure.failure_class}: {failure.message}"
            self._goal.life += 1
        return delay_s

    def _go_on(self, found: FoundRun) -> None:
        """From where an earlier Berth has left it."""
        goal, instance = self._goal, self.instance
        if found.fate is Fate.ENDED:
            goal.desired = Desired.STOPPED
            self.ended_life = goal.life
            instance.level = 0
            self.log.lines.close()
            return
        self._found = found
        goal.level = instance.level = found.level
        if instance.state is InstanceState.STOPPING:
            goal.desired = Desired.STOPPED
            goal.reason = instance.status_reason
        elif found.fate is Fate.BEGIN:
            goal.reason = "it was to run when an earlier Berth ended"

    # Small questions.

    @property
    def _is_ending(self) -> bool:
        """Whether the present life is to end, or the wanted one hasn't begun."""
        return self._life is None or self._life.is_over

    @property
    def _is_backing_off(self) -> bool:
        """Whether it has failed and will start again by itself."""
        is_failed = self.instance.state is InstanceState.FAILED
        return is_failed and self._goal.desired is Desired.RUNNING and self._goal.life != self.ended_life

    def _wrong_state(self, wish: str) -> WrongState:
        what = "being deleted" if self.is_being_deleted else self.instance.state.value
        return WrongState(f"instance {self.instance.instance_id!r} can't {wish}: it is {what}")

    def _refusal(self, shutting_down: bool) -> ManagerError:
        if shutting_down:
            return ShuttingDown("Berth is shutting down", retry_after_s=5.0)
        return InstanceNotRunning(
            f"instance {self.instance.instance_id!r} is not running any more: {self._goal.reason}"
        )
