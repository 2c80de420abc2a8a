"""The sleep level that callers request for an instance, or that its engine already has. Calls no `/sleep`."""

from __future__ import annotations

import logging
from collections.abc import Callable

import httpx

from instance_manager.backends import backend_of
from instance_manager.errors import WrongState
from instance_manager.lifecycle.desired_state import DesiredPhase, DesiredState, wrong_state
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.sleep_client import SLEEP_LEVELS, SleepClient, SleepRefused
from instance_manager.types import InstanceState

logger = logging.getLogger("berth.manager")


class SleepRequests:
    """Of one instance. `is_ending`: whether its current run is to end, or the desired one hasn't begun."""

    def __init__(
        self,
        instance: Instance,
        desired: DesiredState,
        client: httpx.AsyncClient,
        is_ending: Callable[[], bool],
    ) -> None:
        self._instance = instance
        self._desired = desired
        self._client = client
        self._is_ending = is_ending
        self._is_checking = False

    @property
    def is_asleep(self) -> bool:
        """Whether it sleeps or is about to, so that it must be woken before it serves."""
        return self._desired.sleep_level > 0

    @property
    def error(self) -> str | None:
        """Why it isn't asleep although that was requested."""
        return self._desired.sleep_error

    def request_sleep(self, level: int) -> None:
        """Accept no more requests for now, drain, and free memory: the KV cache, at level 2 the weights too.

        An instance that sleeps at a deeper level stays there. Raises WrongState unless it is running and
        has a sleep mode.
        """
        instance = self._instance
        is_running = self._desired.phase is DesiredPhase.RUNNING
        if not is_running or self._is_ending() or instance.state.is_terminal:
            raise wrong_state(instance, self._desired, "be put to sleep")
        if instance.state in (InstanceState.STARTING, InstanceState.HEALTH_CHECKING):
            raise wrong_state(instance, self._desired, "be put to sleep before it runs")
        if instance.plan.sleep_style is None:
            raise WrongState(
                f"instance {instance.instance_id!r} can't sleep: engine {instance.spec.engine!r} "
                f"{backend_of(instance.spec.engine).without_sleep}; stop it instead"
            )
        self._desired.sleep_level = max(level, instance.level)
        self._desired.sleep_error = None
        instance.gate.close()
        self._desired.notify()

    def request_wake(self) -> None:
        """Serve again. Raises WrongState if it is neither running nor asleep."""
        if self._desired.phase is not DesiredPhase.RUNNING or self._instance.state.is_terminal:
            raise wrong_state(self._instance, self._desired, "be woken")
        if self._desired.sleep_level:
            self._desired.sleep_level = 0
            self._desired.notify()

    def record_sleep(self, level: int) -> None:
        """The engine was put to sleep through its own route: send it nothing until it is woken."""
        instance, desired = self._instance, self._desired
        is_running = desired.phase is DesiredPhase.RUNNING
        if not is_running or self._is_ending() or instance.plan.sleep_style is None:
            return
        if instance.state is InstanceState.RUNNING and desired.sleep_level == 0:
            instance.gate.close()
            desired.sleep_level = instance.level = level
            instance.set_state(InstanceState.SLEEPING, f"put to sleep by its own route at level {level}")
            desired.notify()
        elif instance.state is InstanceState.SLEEPING and level > instance.level:
            desired.sleep_level = instance.level = level
            instance.publish_update({"sleep_level": level})
            desired.notify()

    async def check_sleep(self) -> None:
        """Ask the engine whether it was put to sleep without a request to Berth, and record that."""
        instance = self._instance
        endpoint, style = instance.gate.endpoint, instance.plan.sleep_style
        if endpoint is None or style is None or self._is_checking:
            return
        url = f"http://{endpoint.host}:{endpoint.port}"
        client = SleepClient(self._client, url, endpoint.api_key, style, endpoint.served_name)
        self._is_checking = True
        try:
            if await client.is_asleep() and instance.gate.endpoint is endpoint:
                self.record_sleep(max(SLEEP_LEVELS))  # the engine doesn't report its level
        except SleepRefused as error:
            logger.info("instance=%s: %s", instance.instance_id, error)
        finally:
            self._is_checking = False
