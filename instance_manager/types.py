"""The instance manager's shared types: specs, states, transitions, failures and events.

Knows nothing of HTTP, processes or particular engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class InstanceState(StrEnum):
    """The state of an instance; the values are the wire names."""

    STARTING = "starting"  # the process is being spawned
    HEALTH_CHECKING = "health_checking"  # spawned, not yet known to serve its model
    RUNNING = "running"
    SLEEPING = "sleeping"
    WAKING = "waking"
    STOPPING = "stopping"  # draining, then ending the process group
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the instance has no process; only a start request leaves this state."""
        return self in (InstanceState.STOPPED, InstanceState.FAILED)

    @property
    def is_pending(self) -> bool:
        """Whether a request may wait for the instance, because it is becoming ready."""
        return self in (InstanceState.STARTING, InstanceState.HEALTH_CHECKING, InstanceState.WAKING)


_S = InstanceState

TRANSITIONS: Mapping[InstanceState, frozenset[InstanceState]] = {
    _S.STARTING: frozenset({_S.HEALTH_CHECKING, _S.STOPPING, _S.FAILED}),
    # To starting: another program took the port; the engine is spawned again with another one.
    # To sleeping: the adopted engine was put to sleep by a previous Berth process.
    _S.HEALTH_CHECKING: frozenset({_S.RUNNING, _S.SLEEPING, _S.STARTING, _S.STOPPING, _S.FAILED}),
    _S.RUNNING: frozenset({_S.SLEEPING, _S.STOPPING, _S.FAILED}),
    _S.SLEEPING: frozenset({_S.WAKING, _S.STOPPING, _S.FAILED}),
    _S.WAKING: frozenset({_S.RUNNING, _S.STOPPING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.FAILED}),
    _S.STOPPED: frozenset({_S.STARTING}),
    _S.FAILED: frozenset({_S.STARTING, _S.STOPPED}),
}


class InvalidTransition(RuntimeError):
    """A state change that TRANSITIONS forbids: a bug in Berth."""


class FailureClass(StrEnum):
    """Why an instance failed, as far as its exit and log show."""

    OUT_OF_MEMORY = "out_of_memory"
    PORT_IN_USE = "port_in_use"
    BAD_ARGUMENTS = "bad_arguments"
    MODEL_NOT_FOUND = "model_not_found"
    UNSUPPORTED_MODEL = "unsupported_model"  # its files exist, but the engine doesn't support them
    START_TIMEOUT = "start_timeout"
    CRASHED = "crashed"
    UNHEALTHY = "unhealthy"
    IMAGE_MISSING = "image_missing"  # neither here nor in a registry that could be reached
    RUNTIME_UNAVAILABLE = "runtime_unavailable"  # the container runtime is missing, or its daemon is away
    NAME_TAKEN = "name_taken"  # by a container that isn't this instance's
    LOST = "lost"  # it was running when the previous Berth process ended, and can't be found any more


@dataclass(frozen=True, slots=True)
class InstanceFailure:
    """A failure. At most one of `exit_code` and `signal` is set."""

    failure_class: FailureClass
    message: str
    exit_code: int | None = None
    signal: str | None = None
    log_tail: tuple[str, ...] = ()


class ExpireAction(StrEnum):
    """What happens to an instance after its idle timeout."""

    STOP = "stop"
    SLEEP1 = "sleep1"  # the KV cache is freed, weights move to host memory
    SLEEP2 = "sleep2"  # weights are freed too


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """What a catalog's model says of each of its replicas, and a spec of its instance."""

    env: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[str] | None = None  # None = Berth chooses
    command: Sequence[str] | None = None  # argv with {port}, {model}, {host}; for "command" only
    stop_command: Sequence[str] | None = None  # argv with {pid} besides; run before the signals
    health_path: str | None = None
    runtime: str | None = None  # that runs it in a container: "docker", "podman"; None = a plain process
    image: str | None = None  # of its container; None = the engine kind's
    volumes: Sequence[str] = ()  # "SOURCE:TARGET[:OPTIONS]"
    gpus: str | None = None  # what its container sees; None = `devices`
    run_args: Sequence[str] = ()  # further flags of `docker run`
    pinned: bool = False  # never expired, never evicted
    concurrency_limit: int = 0  # requests in flight; 0 = the manager's limit
    expire_action: ExpireAction | None = None  # None = the manager's

    def replica_options(self) -> dict[str, Any]:
        """These fields alone, by name."""
        return {each.name: getattr(self, each.name) for each in fields(ReplicaOptions)}


@dataclass(frozen=True, slots=True)
class InstanceSpec(ReplicaOptions):
    """A validated request for an instance, from which everything else about it follows."""

    model_name: str
    engine: str  # the name of a back end
    params: Mapping[str, Any] = field(default_factory=dict)  # of the request only; None removes a key
    timeout_s: float | None = None  # idle timeout (the name is stored); 0 = never; None = the default
    name: str | None = None  # becomes the instance id
    profile: str | None = None  # the catalog model whose replica this is
    engine_reason: str = field(default="", compare=False)  # why it is this engine


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running engine listens. Each new process of an instance has a higher `generation`."""

    host: str
    port: int
    api_key: str
    generation: int
    is_peer: bool = False  # the address of another node, which forwards to the engine
    served_name: str = ""  # the engine's name for its model; empty = the requested name
    adapters: tuple[str, ...] = ()  # further names it answers to: LoRA adapters
    isolates_tenants: bool = False  # hides what one of Berth's API keys has created from the others
    keeps_connections: bool = True  # else each request needs a new one
    speaks: dict[str, bool] = field(default_factory=dict, compare=False)  # paths known to exist there, or not


@dataclass(frozen=True, slots=True)
class Container:
    """The container of an engine. `pid`: its first process, as numbered here; None = it can't be seen."""

    name: str
    container_id: str
    pid: int | None = None
    start_ticks: int | None = None  # of that process, since boot


@dataclass(frozen=True, slots=True)
class RunSecrets:
    """Secrets of one engine process, passed only in its environment."""

    token: str = field(repr=False)  # identifies its process tree
    api_key: str = field(repr=False)  # required from its clients


@dataclass(frozen=True, slots=True)
class Event:
    """One event of `GET /events`. `time` is wall-clock seconds since the epoch."""

    event_id: int
    type: str  # "instance.state", "instance.expired", "instance.deleted" …
    time: float
    instance_id: str
    data: Mapping[str, Any]
