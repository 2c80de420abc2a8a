"""Brings an engine process to the desired sleep level. Changes the instance's state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import httpx

from instance_manager.lifecycle.desired_state import DesiredState
from instance_manager.lifecycle.engine_handle import EngineHandle
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.sleep_client import SLEEP_LEVELS, SleepClient, SleepRefused
from instance_manager.types import InstanceState

logger = logging.getLogger("berth.manager")


class SleepController:
    """For one run: `is_over` says whether the run is to end; `open_gate` accepts requests again."""

    def __init__(
        self,
        engine: EngineHandle,
        instance: Instance,
        desired: DesiredState,
        client: httpx.AsyncClient,
        is_over: Callable[[], bool],
        open_gate: Callable[[EngineHandle], None],
    ) -> None:
        self._engine = engine
        self._instance = instance
        self._desired = desired
        self._client = client
        self._is_over = is_over
        self._open_gate = open_gate

    async def change_level(self) -> None:
        """Take one step towards the desired level, or none if the desired state changes meanwhile."""
        if self._desired.sleep_level > self._instance.level:
            if await self._drain():
                if self._instance.gate.queued and self._instance.level == 0:
                    # These requests came before the sleep request, and nothing else would wake the engine.
                    self._desired.sleep_level = 0
                else:
                    await self._put_to_sleep(self._desired.sleep_level)
            if self._desired.sleep_level == self._instance.level == 0 and not self._is_over():
                self._open_gate(self._engine)  # a wake request came before it slept, or it refused to sleep
                self._instance.notify()  # the caller that requested the sleep need not wait any longer
        else:
            await self._wake()

    async def _drain(self) -> bool:
        """Wait until no lease is out; False if the desired state changes or the engine exits first."""
        gate, level = self._instance.gate, self._desired.sleep_level
        while gate.in_flight:
            await asyncio.wait(
                (gate.drained(), self._engine.exited, self._desired.changed),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._engine.exited.done() or self._is_over() or self._desired.sleep_level != level:
                return False
        return True

    async def _put_to_sleep(self, level: int) -> None:
        try:
            if not await self._engine.unless_exited(self._sleep_client().sleep(level)):
                return
        except SleepRefused as error:
            logger.warning("instance=%s can't be put to sleep: %s", self._instance.instance_id, error)
            self._desired.sleep_error = str(error)
            self._desired.sleep_level = self._instance.level
            self._instance.notify()
            return
        self._instance.level = level
        if self._instance.state is InstanceState.RUNNING:
            self._instance.set_state(InstanceState.SLEEPING, f"asleep at level {level}")
        else:
            self._instance.publish_update({"sleep_level": level})

    async def _wake(self) -> None:
        """Replace an engine that can't be woken by a new process; waiting requests keep waiting."""
        instance = self._instance
        level = instance.level
        instance.set_state(InstanceState.WAKING, f"waking from level {level}")
        try:
            if not await self._engine.unless_exited(self._sleep_client().wake(level)):
                return
        except SleepRefused as error:
            logger.warning("instance=%s is restarted: it can't be woken: %s", instance.instance_id, error)
            if not self._is_over():
                self._desired.reason = f"could not be woken: {error}"
                self._desired.drain_timeout_s = 0.0
                self._desired.request_new_run()
            return
        instance.level = 0
        if not self._is_over():
            instance.set_state(InstanceState.RUNNING, f"woken from level {level}")
            self._open_gate(self._engine)

    def _sleep_client(self) -> SleepClient:
        instance = self._instance
        if instance.plan.sleep_style is None:
            raise RuntimeError("an engine without sleep mode was asked to sleep")
        return SleepClient(
            self._client,
            f"http://{instance.host}:{self._engine.port}",
            self._engine.api_key,
            instance.plan.sleep_style,
            instance.served_model_name,
        )

    async def sync_level(self) -> None:
        """Read the level of an adopted engine: it may have changed while no Berth process could store it."""
        try:
            is_asleep = await self._sleep_client().is_asleep()
        except SleepRefused as error:
            logger.warning("instance=%s: %s", self._instance.instance_id, error)
            return
        instance = self._instance
        if is_asleep and not instance.level:
            instance.level = max(SLEEP_LEVELS)  # the engine doesn't report its level
            self._desired.sleep_level = 0 if instance.gate.queued else instance.level
        elif not is_asleep:
            instance.level = 0
