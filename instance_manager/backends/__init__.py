"""Back ends: from an instance's spec to the command that runs it. One interface, one module per engine."""

from __future__ import annotations

from collections.abc import Mapping

from instance_manager.backends.base import Backend, LaunchPlan
from instance_manager.backends.command import CommandBackend
from instance_manager.backends.engine import EngineBackend
from instance_manager.backends.vllm import VllmBackend
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import InstanceSpec

__all__ = ["BACKENDS", "Backend", "LaunchPlan", "plan_launch"]

BACKENDS: Mapping[str, Backend] = {
    backend.name: backend for backend in (EngineBackend(), VllmBackend(), CommandBackend())
}


def plan_launch(spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
    """How to run `spec`. Raises InvalidSpec or ModelNotFound."""
    backend = BACKENDS.get(spec.engine)
    if backend is None:
        raise InvalidSpec(
            f"unknown engine {spec.engine!r}; known engines: {', '.join(BACKENDS)}", param="engine"
        )
    return backend.plan(spec, config)
