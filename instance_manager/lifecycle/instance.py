"""One instance as the rest of Berth sees it: its state, its gate and its JSON."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends import LaunchPlan
from instance_manager.backends.params import adapter_names, mask_command, mask_params
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.config import ManagerConfig
from instance_manager.events import EventLog
from instance_manager.lifecycle.gate import Gate, GateObserver
from instance_manager.lifecycle.idle_policy import Idleness, expires_at
from instance_manager.types import (
    TRANSITIONS,
    Endpoint,
    InstanceFailure,
    InstanceSpec,
    InstanceState,
    RunSecrets,
)

logger = logging.getLogger("berth.manager")


class InvalidTransition(RuntimeError):
    """A state change that TRANSITIONS forbids: a bug in Berth."""


class Instance:
    """Written by its supervisor and the supervisor's helpers, `state` by nothing else.

    `pinned`, `idle_timeout_s`, `other_names` and `memory_bytes` are set by the manager and the fleet. Times
    without `_at` in the name are durations.
    """

    def __init__(
        self,
        instance_id: str,
        spec: InstanceSpec,
        plan: LaunchPlan,
        *,
        gate: Gate,
        events: EventLog,
        host: str,
        port: int | None,
        idle_timeout_s: float,
        log_path: Path,
        clock: Callable[[], float],
    ) -> None:
        """The caller completes the instance, then publishes it with `set_initial_state`."""
        self.instance_id = instance_id
        self.spec = spec
        self.plan = plan
        self.gate = gate
        self.state = InstanceState.STARTING
        self.status_reason = "created"
        self.failure: InstanceFailure | None = None
        self.idle_timeout_s = idle_timeout_s
        self.pinned = spec.pinned
        self.other_names: tuple[str, ...] = ()  # of its catalog model, set by the fleet
        self.reported_name: str | None = None  # by its engine, if that may ignore the given name
        self.level = 0  # of sleep: 1 or 2; 0 = awake
        self.awake_since: float | None = None  # monotonic seconds
        self.host = host
        self.port = port
        self.pid: int | None = None
        self.pid_start_time: float | None = None
        self.pid_start_ticks: int | None = None  # since boot
        self.secrets: RunSecrets | None = None  # of the current process or the last one
        self.log_start = 0  # byte offset of the current process's first log line
        self.command: list[str] = []
        self.memory_bytes: int | None = None
        self.created_at = time.time()
        self.started_at = self.created_at  # when it last left a terminal state
        self.ready_at: float | None = None
        self.generation = 0  # number of the current process; keeps counting when Berth restarts
        self.log_path = log_path
        self._events = events
        self._clock = clock
        self._changed = asyncio.Event()  # replaced each time it is set

    @property
    def model_name(self) -> str:
        return self.spec.model_name

    @property
    def served_model_name(self) -> str:
        """The name the engine answers to: the one it reported, else the one it was started with."""
        return self.reported_name or self.plan.served_model_name

    @property
    def names(self) -> tuple[str, ...]:
        """The model names under which clients may request it."""
        if self.spec.profile is not None:
            return (self.spec.profile, *self.other_names)
        served = self.plan.params.get("served_model_name") or ()
        all_served = (served,) if isinstance(served, str) else tuple(served)
        own = (self.served_model_name, *all_served, self.model_name, *adapter_names(self.plan.params))
        return tuple(dict.fromkeys(own))

    @property
    def runner(self) -> RunnerKind | None:
        """What its engine can serve; None = unknown."""
        return self.plan.runner

    @property
    def idleness(self) -> Idleness:
        return Idleness(self.idle_timeout_s, self.pinned, self.gate.in_flight, self.gate.last_active)

    def endpoint(self, port: int, api_key: str) -> Endpoint:
        """Where its current process listens."""
        return Endpoint(
            self.host,
            port,
            api_key,
            self.generation,
            served_name=self.served_model_name,
            adapters=adapter_names(self.plan.params),
            isolates_tenants=self.plan.isolates_tenants,
        )

    def set_initial_state(
        self, state: InstanceState, reason: str, *, previous: InstanceState | None = None
    ) -> None:
        """Set and publish the first state; `previous`: the last one under a previous Berth process."""
        self.state = state
        self.status_reason = reason
        self._publish_state(previous)

    def publish_update(self, data: Mapping[str, Any]) -> None:
        """Emit `instance.updated`: something other than the state has changed."""
        self._events.publish("instance.updated", self.instance_id, data)
        self.notify()

    def set_state(self, state: InstanceState, reason: str, failure: InstanceFailure | None = None) -> None:
        """Change the state, log it, emit `instance.state` and wake all waiters. Raises InvalidTransition."""
        previous = self.state
        if state not in TRANSITIONS[previous]:
            raise InvalidTransition(f"{self.instance_id}: {state} can't follow {previous} ({reason})")
        self.state = state
        self.status_reason = reason
        if state is InstanceState.STARTING:
            self.failure = None
            self.ready_at = None
            if previous.is_terminal:
                self.started_at = time.time()
        elif state is InstanceState.RUNNING:
            self.awake_since = self._clock()
            if self.ready_at is None:
                self.ready_at = time.time()
        elif state is InstanceState.FAILED:
            self.failure = failure
        self._publish_state(previous)

    async def wait_for_change(self) -> None:
        """Return after the next `notify`, which follows every change of state."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all callers of `wait_for_change`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def record(self) -> dict[str, Any]:
        """The instance as JSON. Points in time are seconds since the epoch, durations seconds."""
        gate = self.gate
        wall_offset = time.time() - self._clock()
        expires = expires_at(self.idleness) if self.state is InstanceState.RUNNING else None
        return {
            "instance_id": self.instance_id,
            "model_name": self.spec.model_name,
            "served_model_name": self.served_model_name,
            "engine": self.spec.engine,
            "status": self.state.value,
            "status_reason": self.status_reason,
            "sleep_level": self.level or None,
            "profile": self.spec.profile,
            "pinned": self.pinned,
            "host": self.host,
            "port": self.port,
            "pid": self.pid,
            "pid_start_time": self.pid_start_time,
            "params": mask_params(self.plan.params),
            "command": mask_command(self.command),
            "timeout": self.idle_timeout_s,
            "expires_at": None if expires is None else expires + wall_offset,
            "last_active": self.last_active_at,
            "in_flight": gate.in_flight,
            "devices": None if self.spec.devices is None else list(self.spec.devices),
            "memory_bytes": self.memory_bytes,
            "created_at": self.created_at,
            "ready_at": self.ready_at,
            "load_seconds": None if self.ready_at is None else self.ready_at - self.started_at,
            "restarts": max(0, self.generation - 1),
            "log_path": str(self.log_path),
            "error": None if self.failure is None else failure_record(self.failure),
        }

    @property
    def last_active_at(self) -> float:
        """When it was last used; seconds since the epoch."""
        return self.gate.last_active + time.time() - self._clock()

    def __repr__(self) -> str:
        return f"<Instance {self.instance_id} {self.state} port={self.port} pid={self.pid}>"

    def _publish_state(self, previous: InstanceState | None) -> None:
        level = logging.WARNING if self.state is InstanceState.FAILED else logging.INFO
        logger.log(
            level,
            "instance=%s %s -> %s port=%s pid=%s reason=%r",
            self.instance_id,
            previous,
            self.state,
            self.port,
            self.pid,
            self.status_reason,
        )
        data: dict[str, Any] = {
            "status": self.state.value,
            "previous": None if previous is None else previous.value,
            "reason": self.status_reason,
            "model_name": self.spec.model_name,
            "in_flight": self.gate.in_flight,
        }
        if self.state is InstanceState.FAILED and self.failure is not None:
            data["error"] = failure_record(self.failure)
        self._events.publish("instance.state", self.instance_id, data)
        self.notify()


def new_instance(
    instance_id: str,
    spec: InstanceSpec,
    plan: LaunchPlan,
    *,
    config: ManagerConfig,
    events: EventLog,
    clock: Callable[[], float],
    port: int | None,
    log_path: Path,
    observer: GateObserver | None = None,
) -> Instance:
    """An instance in `starting` with a closed gate and the manager's defaults, not yet published."""
    gate = Gate(
        instance_id,
        spec.model_name,
        max_in_flight=spec.concurrency_limit or config.max_in_flight,
        max_queue=config.max_queue,
        clock=clock,
        observer=observer,
    )
    return Instance(
        instance_id,
        spec,
        plan,
        gate=gate,
        events=events,
        host=config.host,
        port=port,
        idle_timeout_s=config.default_idle_timeout_s if spec.timeout_s is None else spec.timeout_s,
        log_path=log_path,
        clock=clock,
    )


def failure_record(failure: InstanceFailure) -> dict[str, Any]:
    """A failure as JSON."""
    return {
        "class": failure.failure_class.value,
        "message": failure.message,
        "exit_code": failure.exit_code,
        "signal": failure.signal,
        "log_tail": list(failure.log_tail),
    }
