"""Samples how loaded models are, and requests one replica more or stops one accordingly."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from instance_manager.broadcast.broadcast import Broadcast
from instance_manager.errors import ManagerError
from instance_manager.fleet.memory_planner import MemoryPlanner
from instance_manager.fleet.model_registry import ModelRegistry
from instance_manager.fleet.models import Model
from instance_manager.fleet.scaler import Scaler
from instance_manager.fleet.scaling import ScalePolicy, wanted_replicas
from instance_manager.manager import InstanceManager
from instance_manager.memory.victims import EvictionStep, plan_scale_down

logger = logging.getLogger("berth.fleet")

_SAMPLE_INTERVAL_S = 1.0
_SAMPLES_PER_MEASUREMENT = 5  # of memory; each sample measures it while little is left


class LoadMonitor:
    """Keeps as many replicas of each model as its profile and its load ask for."""

    def __init__(
        self,
        manager: InstanceManager,
        registry: ModelRegistry,
        planner: MemoryPlanner,
        scaler: Scaler,
        policy: ScalePolicy,
        news: Broadcast,
        clock: Callable[[], float],
    ) -> None:
        self._manager = manager
        self._registry = registry
        self._planner = planner
        self._scaler = scaler
        self._policy = policy
        self._news = news
        self._clock = clock

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in itertools.count(1):
                if number % _SAMPLES_PER_MEASUREMENT == 0 or self._planner.is_tight:
                    self._scaler.measure()
                for model in list(self._registry.by_name.values()):
                    if model.profile is None:  # it may have left the catalog while requests waited
                        self._registry.remove_if_unused(model)
                    self._scale(model, tasks)
                await asyncio.sleep(_SAMPLE_INTERVAL_S)

    def _scale(self, model: Model, tasks: asyncio.TaskGroup) -> None:
        profile = model.profile
        if profile is None or (profile.max_replicas <= 1 and not profile.min_replicas) or model.refusal:
            return
        samples = model.load_samples
        samples.append(model.in_flight + len(model.queue))
        del samples[: -self._policy.window_samples]
        awake = [one for one in model.awake if one.spec.profile is not None]  # others aren't the catalog's
        wanted = wanted_replicas(profile, samples, len(awake), self._policy)
        if wanted > len(awake):
            if model.backoff.may_start_unasked and not (model.is_starting or model.is_changing):
                model.start_requested = True
                self._news.notify_all()
        elif wanted < len(awake):
            step = plan_scale_down([one.resident() for one in awake], self._clock())
            if step is not None:
                tasks.create_task(self._stop(model, step), name=f"scale down {model.name}")

    async def _stop(self, model: Model, step: EvictionStep) -> None:
        """Takes as long as the replica's requests, which must not hold up the other models."""
        try:
            await self._manager.evict(step, reason="scaled down")
        except ManagerError as error:
            logger.info("model=%s is not scaled: %s", model.name, error)
