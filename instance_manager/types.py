"""The words of the instance manager: specs, states, transitions, records and events.

Knows nothing of HTTP, of processes or of any particular engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


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


class ExpireAction(StrEnum):
    """What happens to an idle instance when its time is out."""

    STOP = "stop"
    SLEEP1 = "sleep1"  # the KV cache is given back, weights go to host memory
    SLEEP2 = "sleep2"  # weights are given back too


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
    is_peer: bool = False  # another Berth's front door, behind which the engine is
    served_name: str = ""  # what the engine calls its model; empty = as it was asked for
    adapters: tuple[str, ...] = ()  # names that it knows besides, of LoRA adapters
    tells_tenants_apart: bool = False  # it keeps what one of Berth's keys has made from the others


@dataclass(frozen=True, slots=True)
class RunSecrets:
    """What one process of an engine is told in its environment, and nobody else."""

    token: str = field(repr=False)  # by which its whole tree is known again
    api_key: str = field(repr=False)  # which it wants to see from who talks to it


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, as `GET /events` tells it. `time` is wall-clock seconds since the epoch."""

    event_id: int
    type: str  # "instance.state", "instance.expired", "instance.deleted" …
    time: float
    instance_id: str
    data: Mapping[str, Any]
