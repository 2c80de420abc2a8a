"""Makes instances, of specs and of stored records; `Instance.stored` is the other direction."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from instance_manager.backends import LaunchPlan, plan_launch
from instance_manager.config import ManagerConfig
from instance_manager.errors import ManagerError
from instance_manager.events import EventLog
from instance_manager.lifecycle.engine_handle import EngineFailed
from instance_manager.lifecycle.gate import Gate, GateObserver
from instance_manager.lifecycle.instance import SHARED_FIELDS, Instance
from instance_manager.lifecycle.last_use import last_used_at
from instance_manager.process.containers.command import RUNTIMES, ContainerPlan
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import FailureClass, InstanceFailure, InstanceSpec, RunSecrets

# The rest of these fields comes back unchanged. A port, a process and what was measured of it come back only
# by adoption.
_NOT_RESTORED = frozenset(
    (
        *("instance_id", "spec", "model_name", "served_model_name", "host"),
        *("port", "pid", "pid_start_ticks", "memory_bytes"),
    )
)
_RESTORED = tuple(name for name in SHARED_FIELDS if name not in _NOT_RESTORED)
_MAX_NUMBER = 2**62


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


def instance_of(
    record: InstanceRecord,
    config: ManagerConfig,
    events: EventLog,
    clock: Callable[[], float],
    observer: GateObserver | None = None,
) -> Instance:
    """An unpublished instance without a process, idle since its stored last use."""
    instance = new_instance(
        record.instance_id,
        record.spec,
        _plan(record.spec, config),
        config=config,
        events=events,
        clock=clock,
        port=None,
        log_path=Path(record.log_path or config.log_path(record.instance_id)),
        observer=observer,
    )
    for name in _RESTORED:
        setattr(instance, name, getattr(record, name))
    instance.failure = None if record.failure is None else _failure(dict(record.failure))
    instance.idle_timeout_s = record.timeout_s
    instance.command = list(record.command)
    instance.level = record.sleep_level
    instance.log_start = int(_number(record, "log_start") or 0)
    if (precision_s := _last_active_precision_s(record)) is not None:
        instance.gate.last_active = last_used_at(
            record.last_active, precision_s=precision_s, wall_now=time.time(), now=clock()
        )
    if record.token and record.api_key:
        instance.secrets = RunSecrets(record.token, record.api_key)
    return instance


def _last_active_precision_s(record: InstanceRecord) -> float | None:
    """How much too early the record's `last_active` may be; None = it says nothing.

    Until an instance ended, earlier versions stored it with changes of the state only.
    """
    if not record.last_active:
        return None
    if record.state.is_terminal:
        return 0.0
    return _number(record, "last_active_precision_s")


def _number(record: InstanceRecord, name: str) -> float | None:
    """A number of the record's `extra`, whose types nothing has checked; None if it isn't one."""
    value = record.extra.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if 0 <= value < _MAX_NUMBER else None


def _plan(spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
    """How to start it again. If that is no longer possible, only starting it fails: it may be running now."""
    try:
        return plan_launch(spec, config)
    except ManagerError as error:
        failure = InstanceFailure(FailureClass.BAD_ARGUMENTS, error.message)

        def refuse(host: str, port: int) -> list[str]:
            raise EngineFailed(failure)

        plan = LaunchPlan(refuse, spec.params, spec.model_name, spec.health_path or "/health", False)
        if spec.runtime in RUNTIMES:  # so that a container that runs is ended as one
            return replace(plan, container=ContainerPlan(str(spec.runtime), spec.image or ""))
        return plan


def _failure(stored: dict[str, Any]) -> InstanceFailure:
    """A failure class that this version doesn't know (a newer one wrote it) counts as a crash."""
    name, log_tail = str(stored.get("class")), stored.get("log_tail")
    failure_class = FailureClass(name) if name in set(FailureClass) else FailureClass.CRASHED
    return InstanceFailure(
        failure_class,
        str(stored.get("message", "")),
        stored.get("exit_code"),
        stored.get("signal"),
        tuple(map(str, log_tail)) if isinstance(log_tail, list) else (),
    )
