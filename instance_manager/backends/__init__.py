"""The engine kinds: what each runs, and everything else that Berth knows of it. One module per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instance_manager.backends.base import Backend, LaunchPlan
from instance_manager.backends.command import CommandBackend
from instance_manager.backends.containers import check_container_fields, in_container
from instance_manager.backends.engine import EngineBackend
from instance_manager.backends.engine_choice import ChoiceFacts, EngineChoice, format_of
from instance_manager.backends.llama import LlamaBackend
from instance_manager.backends.sglang import SglangBackend
from instance_manager.backends.tei import TeiBackend
from instance_manager.backends.vllm import VllmBackend
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import InstanceSpec

__all__ = [
    "AUTO",
    "BACKENDS",
    "Backend",
    "EngineChoice",
    "LaunchPlan",
    "backend_of",
    "choose_engine",
    "plan_launch",
]

# The registry. To add a kind: a module beside this one, and a line here.
_SERVERS: tuple[Backend, ...] = (
    EngineBackend(),
    VllmBackend(),
    LlamaBackend(),
    SglangBackend(),
    TeiBackend(),
)
BACKENDS: dict[str, Backend] = {one.name: one for one in (*_SERVERS, CommandBackend(_SERVERS))}

AUTO = "auto"  # in place of a kind's name: Berth chooses by the model's files
_FALLBACK = EngineBackend()  # it may be able to read what no other kind claims


class _Unknown(Backend):
    """Stands for a kind that isn't registered: an adopted engine may be of one, of a newer Berth."""

    runs_command = True  # so that the name is refused, not the command

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        raise InvalidSpec(
            f"unknown engine {spec.engine!r}; known engines: {', '.join(BACKENDS)}", param="engine"
        )


_UNKNOWN = _Unknown()


def backend_of(kind: str) -> Backend:
    """The back end of this name; for an unknown one, a back end that plans nothing."""
    return BACKENDS.get(kind, _UNKNOWN)


def choose_engine(
    model: str,
    *,
    model_dirs: Sequence[Path],
    environ: Mapping[str, str],
    options: Mapping[str, Any],
    has_gpu: Callable[[], bool],
) -> EngineChoice:
    """The kind for a model whose engine nobody named. `environ`: the engine's. Blocks for milliseconds."""
    facts = ChoiceFacts(format_of(model, model_dirs, environ), options, has_gpu)
    for name, kind in BACKENDS.items():
        if name != _FALLBACK.name and (reason := kind.reason_to_choose(facts)) is not None:
            return EngineChoice(name, reason)
    return EngineChoice(_FALLBACK.name, _FALLBACK.reason_to_choose(facts) or "")


def plan_launch(spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
    """How to run `spec`. Raises InvalidSpec or ModelNotFound."""
    backend = backend_of(spec.engine)
    if spec.command is not None and not backend.runs_command:
        message = f"command is for engine {CommandBackend.name!r} only; engine {spec.engine!r} builds its own"
        raise InvalidSpec(message, param="command")
    if spec.stop_command is not None and not backend.runs_command:
        message = f"stop_command is for engine {CommandBackend.name!r} only, not {spec.engine!r}"
        raise InvalidSpec(message, param="stop_command")
    if backend is _UNKNOWN:
        return backend.plan(spec, config)
    check_container_fields(spec, backend)
    plan = backend.plan(spec, config)
    if spec.runtime is None:
        return plan
    return replace(plan, container=in_container(plan, spec, backend, config), cwd=None)
