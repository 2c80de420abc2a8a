"""The words of the instance manager: specs, states, transitions, records and events.

Knows nothing of HTTP, of processes or of any particular engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from instance_manager.fleet.profiles import ExpireAction
from instance_manager.lifecycle.liveness import LivenessRules
from instance_manager.lifecycle.restarts import RestartRules


class InstanceState(StrEnum):
    """Where an instance is; the values are the wire names."""

    STARTING = "starting"  # the process is being spawned
    HEALTH_CHECKING = "health_checking"  # spawned; not yet proven to serve its model
    RUNNING = "running"
    SLEEPING = "sleeping"
    WAKING = "waking"
    STOPPING = "stopping"  # draining, then ending the process group
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether no process belongs to the instance; `start` begins anew from here."""
        return self in (InstanceState.STOPPED, InstanceState.FAILED)

    @property
    def is_pending(self) -> bool:
        """Whether a request may wait for the instance, because it is on its way to running."""
        return self in (InstanceState.STARTING, InstanceState.HEALTH_CHECKING, InstanceState.WAKING)


_S = InstanceState

TRANSITIONS: Mapping[InstanceState, frozenset[InstanceState]] = {
    _S.STARTING: frozenset({_S.HEALTH_CHECKING, _S.STOPPING, _S.FAILED}),
    # Back to starting: the engine lost the race for its port and is spawned again on the next.
    # To sleeping: an engine that slept when an earlier Berth died was found again.
    _S.HEALTH_CHECKING: frozenset({_S.RUNNING, _S.SLEEPING, _S.STARTING, _S.STOPPING, _S.FAILED}),
    _S.RUNNING: frozenset({_S.SLEEPING, _S.STOPPING, _S.FAILED}),
    _S.SLEEPING: frozenset({_S.WAKING, _S.STOPPING, _S.FAILED}),
    _S.WAKING: frozenset({_S.RUNNING, _S.STOPPING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.FAILED}),
    _S.STOPPED: frozenset({_S.STARTING}),
    _S.FAILED: frozenset({_S.STARTING, _S.STOPPED}),
}


class FailureClass(StrEnum):
    """Why an instance failed, as far as its exit and its log tell."""

    OUT_OF_MEMORY = "out_of_memory"
    PORT_IN_USE = "port_in_use"
    BAD_ARGUMENTS = "bad_arguments"
    MODEL_NOT_FOUND = "model_not_found"
    UNSUPPORTED_MODEL = "unsupported_model"  # its files are here, and of a kind that the engine doesn't run
    START_TIMEOUT = "start_timeout"
    CRASHED = "crashed"
    UNHEALTHY = "unhealthy"
    LOST = "lost"  # it ran when an earlier Berth died, and can't be found any more


@dataclass(frozen=True, slots=True)
class InstanceFailure:
    """What is known of a failure; `exit_code` and `signal` exclude each other."""

    failure_class: FailureClass
    message: str
    exit_code: int | None = None
    signal: str | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What a caller asks for, checked; everything else about an instance follows from it."""

    model_name: str
    engine: str  # the name of a back end: "engine", "vllm" or "command"
    params: Mapping[str, Any] = field(default_factory=dict)  # of the request alone; None removes a key
    timeout_s: float | None = None  # seconds of idleness before expiry; 0 = never; None = the default
    name: str | None = None  # becomes the instance id
    env: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[str] | None = None
    command: Sequence[str] | None = None  # argv with {port}, {model}, {host}; for "command" only
    health_path: str | None = None
    profile: str | None = None  # the model of the catalog that this is a replica of
    pinned: bool = False
    concurrency_limit: int = 0  # requests in flight; 0 = the manager's
    expire_action: ExpireAction | None = None  # None = the manager's


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running engine listens. A new process of the same instance has a higher `generation`."""

    host: str
    port: int
    api_key: str
    generation: int
    is_berth: bool = False  # another Berth's front door, behind which the engine is
    served_name: str = ""  # what the engine calls its model; empty = as it was asked for
    adapters: tuple[str, ...] = ()  # names that it knows besides, of LoRA adapters
    tells_tenants_apart: bool = False  # it keeps what one of Berth's keys has made from the others


@dataclass(frozen=True, slots=True)
class RunSecrets:
    """What one process of an engine is told in its environment, and nobody else."""

    token: str = field(repr=False)  # by which its whole tree is known again
    api_key: str = field(repr=False)  # which it wants to see from who talks to it


class OnShutdown(StrEnum):
    """What Berth does with its engines when it ends in order; the setting's values."""

    STOP = "stop"
    DETACH = "detach"  # they go on, and the next Berth takes them over


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """The manager's policy, handed down by app.py. Durations in seconds."""

    host: str = "127.0.0.1"  # where engines listen
    base_port: int = 9000
    max_instances: int = 20
    default_engine: str = "engine"
    default_model: str = "berth-demo"
    default_timeout_s: float = 600.0
    expire_action: ExpireAction = ExpireAction.STOP
    start_timeout_s: float = 600.0
    start_timeout_cap_s: float = 3600.0  # a start that makes progress is never given more than this
    stop_grace_s: float = 10.0
    drain_timeout_s: float = 30.0
    max_queue: int = 256  # requests waiting for one instance
    max_in_flight: int = 0  # per instance; 0 = no limit
    restart: RestartRules = field(default_factory=RestartRules)
    liveness: LivenessRules = field(default_factory=LivenessRules)
    log_dir: Path = Path("logs")
    log_max_bytes: int = 10 * 1024 * 1024
    log_ring_lines: int = 1000
    state_url: str = "memory://"  # what outlives Berth is kept there, see stores/open.py
    advertise_url: str = ""  # where other Berths on the same state reach this one
    state_dir: Path | None = None  # this Berth's alone; None = nothing is kept, as in tests
    on_shutdown: OnShutdown = OnShutdown.STOP
    run_dir: Path | None = None  # where shims note how their engines end; None = below log_dir
    use_shim: bool = True  # where the platform has it; without one, an engine is its process group alone
    vllm_python: str | None = None  # the interpreter that has vLLM
    model_dirs: tuple[Path, ...] = ()
    default_params: Mapping[str, Any] = field(default_factory=dict)  # VLLM_DEFAULT_* and VLLM_CONFIG, merged
    engine_params: Mapping[str, Any] = field(default_factory=dict)  # weakest, for the embedded engine alone
    vllm_params: Mapping[str, Any] = field(default_factory=dict)  # defaults for the vLLM back end alone
    engine_env: Mapping[str, str] = field(default_factory=dict)  # HF_HOME, proxies …: for engines only

    def status_path(self, instance_id: str) -> Path:
        """The file in which an instance's shim notes who runs and how the engine ended."""
        return (self.run_dir or self.log_dir / "run") / f"{instance_id}.json"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, as `GET /events` tells it. `time` is wall-clock seconds since the epoch."""

    event_id: int
    type: str  # "instance.state", "instance.expired", "instance.deleted" …
    time: float
    instance_id: str
    data: Mapping[str, Any]
