"""The interface of the back ends, and what back ends with vLLM's flags have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from instance_manager.backends.params import check_params
from instance_manager.backends.runner_kind import RunnerKind, runner_of_checkpoint, runner_of_params
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import InstanceSpec

# Flags that decide where an engine listens, what it loads and which clients it accepts.
OWNED_PARAMS = frozenset(
    {
        "model",
        "model_path",
        "model_tag",
        "host",
        "port",
        "uds",
        "api_key",
        "root_path",
        "ssl_keyfile",
        "ssl_certfile",
        "ssl_ca_certs",
        "ssl_cert_reqs",
    }
)


class SleepStyle(StrEnum):
    """Which routes put an engine to sleep and wake it."""

    ENGINE = "engine"  # the embedded engine: one call wakes it completely
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How to start an engine, except for its port, and how to check that it is ready."""

    argv: Callable[[str, int], list[str]]  # (host, port) -> the command
    params: Mapping[str, Any]  # as merged
    served_model_name: str
    health_path: str = "/health"
    must_name_model: bool = True  # whether /v1/models has to name the served model
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    sleep_style: SleepStyle | None = None  # None = it can't sleep
    runner: RunnerKind | None = None  # what it can serve; None = unknown
    isolates_tenants: bool = False  # it gets the tenant of each request


class Backend(Protocol):
    """One kind of engine."""

    name: str

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        """Check the spec and turn it into a plan. Raises InvalidSpec or ModelNotFound."""
        ...


def check_vllm_like(spec: InstanceSpec, config: ManagerConfig) -> None:
    """Raise InvalidSpec for a spec that engines with vLLM's command line can't run."""
    if spec.command is not None:
        raise InvalidSpec(
            f"command is for engine 'command' only; engine {spec.engine!r} builds its own", param="command"
        )
    check_params(spec.params, OWNED_PARAMS)
    try:
        check_params(config.default_params, OWNED_PARAMS)
    except InvalidSpec as error:
        raise InvalidSpec(f"{error.message} (set in the file VLLM_CONFIG)", param=error.param) from None


def served_name(params: Mapping[str, Any], model_name: str) -> str:
    """The name that the engine serves: the first of `served_model_name`, or the model as requested."""
    value = params.get("served_model_name", model_name)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise InvalidSpec(
            "params.served_model_name must be a name or a list of names", param="params.served_model_name"
        )
    return str(names[0])


def runner_of(params: Mapping[str, Any], model: str) -> RunnerKind | None:
    """What an engine with vLLM's flags serves. `model`: a folder, or a hub id, which isn't looked up."""
    found = runner_of_params(params)
    return runner_of_checkpoint(Path(model)) if found is None and model.startswith("/") else found


def owned_flags(model: str, host: str, port: int) -> list[str]:
    """The flags that Berth sets. They come last: in argparse the last one wins, even over abbreviations."""
    return ["--model", model, "--host", host, "--port", str(port)]
