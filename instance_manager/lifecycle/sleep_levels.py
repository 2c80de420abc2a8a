"""How deep an engine process sleeps, brought to the level that its goal names. Moves the instance's state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import httpx

from instance_manager.lifecycle.desired_state import Goal
from instance_manager.lifecycle.engine_process import EngineRun
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.sleeping import SLEEP_LEVELS, SleepController, SleepRefused
from instance_manager.types import InstanceState

logger = logging.getLogger("berth.manager")


class SleepLevels:
    """Of one life: `is_over` says whether that is to end, `open_gate` lets requests in again."""

    def __init__(
        self,
        run: EngineRun,
        instance: Instance,
        goal: Goal,
        client: httpx.AsyncClient,
        is_over: Callable[[], bool],
        open_gate: Callable[[EngineRun], None],
    ) -> None:
        self._run = run
        self._instance = instance
        self._goal = goal
        self._client = client
        self._is_over = is_over
        self._open_gate = open_gate

    async def change(self) -> None:
        """One step towards the wanted level, or none where the goal changes meanwhile."""
        if self._goal.level > self._instance.level:
            if await self._empty():
                if self._instance.gate.queued and self._instance.level == 0:
                    self._goal.level = 0  # they came before it was sent to sleep, and nobody would wake it
                else:
                    await self._fall_asleep(self._goal.level)
            if self._goal.level == self._instance.level == 0 and not self._is_over():
                self._open_gate(self._run)  # somebody wants it awake before it slept, or it wouldn't sleep
                self._instance.announce()  # whoever sent it to sleep need not wait any longer
        else:
            await self._wake_up()

    async def _empty(self) -> bool:
        """Wait for the leases that are out; False if the goal changes or the engine ends before."""
        gate, wanted = self._instance.gate, self._goal.level
        while gate.in_flight:
            await asyncio.wait(
                (gate.drained(), self._run.exited, self._goal.changed), return_when=asyncio.FIRST_COMPLETED
            )
            if self._run.exited.done() or self._is_over() or self._goal.level != wanted:
                return False
        return True

    async def _fall_asleep(self, level: int) -> None:
        try:
            if not await self._run.unless_exited(self._sleeper().sleep(level)):
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

    async def _wake_up(self) -> None:
        """An engine that can't be woken is replaced by a new process; who waits goes on waiting."""
        instance = self._instance
        level = instance.level
        instance.set_state(InstanceState.WAKING, f"waking from level {level}")
        try:
            if not await self._run.unless_exited(self._sleeper().wake(level)):
                return
        except SleepRefused as error:
            logger.warning("instance=%s is restarted: it can't be woken: %s", instance.instance_id, error)
            if not self._is_over():
                self._goal.reason = f"could not be woken: {error}"
                self._goal.drain_timeout_s = 0.0
                self._goal.want_new_life()
            return
        instance.level = 0
        if not self._is_over():
            instance.set_state(InstanceState.RUNNING, f"woken from level {level}")
            self._open_gate(self._run)

    def _sleeper(self) -> SleepController:
        instance = self._instance
        if instance.plan.sleep_style is None:
            raise RuntimeError("an engine that can't sleep was asked to")
        return SleepController(
            self._client,
            f"http://{instance.host}:{self._run.port}",
            self._run.api_key,
            instance.plan.sleep_style,
            instance.served_model_name,
        )

    async def find_out(self) -> None:
        """It may have fallen asleep, or been woken, when nobody could write that down any more."""
        try:
            is_asleep = await self._sleeper().is_asleep()
        except SleepRefused as error:
            logger.warning("instance=%s: %s", self._instance.instance_id, error)
            return
        instance = self._instance
        if is_asleep and not instance.level:
            instance.level = max(SLEEP_LEVELS)  # nobody knows how deep
            self._goal.level = 0 if instance.gate.queued else instance.level
        elif not is_asleep:
            instance.level = 0
