"""Converts instances to stored records and back. Knows no store and no process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instance_manager.backends import LaunchPlan, plan_launch
from instance_manager.backends.params import mask_command, mask_params
from instance_manager.config import ManagerConfig
from instance_manager.errors import ManagerError
from instance_manager.events import EventLog
from instance_manager.lifecycle.engine_handle import EngineFailed
from instance_manager.lifecycle.gate import GateObserver
from instance_manager.lifecycle.instance import Instance, failure_record, new_instance
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import FailureClass, InstanceFailure, InstanceSpec, RunSecrets


def record_of(instance: Instance, owner: str, boot_id: str | None, *, is_wanted: bool) -> InstanceRecord:
    """All that a later Berth process needs. `is_wanted`: it runs, or will without further requests."""
    secrets = instance.secrets
    return InstanceRecord(
        instance_id=instance.instance_id,
        state=instance.state,
        owner=owner,
        spec=instance.spec,
        model_name=instance.model_name,
        served_model_name=instance.served_model_name,
        params=instance.plan.params,
        command=tuple(mask_command(instance.command)),
        host=instance.host,
        port=instance.port,
        pid=instance.pid,
        pid_start_ticks=instance.pid_start_ticks,
        boot_id=boot_id,
        token=None if secrets is None else secrets.token,
        api_key=None if secrets is None else secrets.api_key,
        generation=instance.generation,
        log_path=str(instance.log_path),
        status_reason=instance.status_reason,
        failure=None if instance.failure is None else failure_record(instance.failure),
        timeout_s=instance.idle_timeout_s,
        pinned=instance.pinned,
        sleep_level=instance.level,
        memory_bytes=instance.memory_bytes,
        created_at=instance.created_at,
        started_at=instance.started_at,
        ready_at=instance.ready_at,
        last_active=instance.last_active_at,
        updated_at=time.time(),
        extra={
            "is_wanted": is_wanted,
            "log_start": instance.log_start,
            "names": list(instance.names),
            "runner": instance.runner,
        },
    )


def instance_of(
    record: InstanceRecord,
    config: ManagerConfig,
    events: EventLog,
    clock: Callable[[], float],
    observer: GateObserver | None = None,
) -> Instance:
    """An unpublished instance without a process. Unless it has ended, its idle time starts anew."""
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
    instance.state = record.state
    instance.status_reason = record.status_reason
    instance.failure = None if record.failure is None else _failure(dict(record.failure))
    instance.idle_timeout_s = record.timeout_s
    instance.pinned = record.pinned
    instance.command = list(record.command)
    instance.created_at, instance.started_at = record.created_at, record.started_at
    instance.ready_at = record.ready_at
    instance.generation = record.generation
    instance.level = record.sleep_level
    instance.log_start = int(record.extra.get("log_start", 0))
    if record.state.is_terminal and record.last_active:
        instance.gate.last_active = clock() - (time.time() - record.last_active)
    if record.token and record.api_key:
        instance.secrets = RunSecrets(record.token, record.api_key)
    return instance


def peer_instance_json(record: InstanceRecord, *, is_alive: bool) -> dict[str, Any]:
    """Another node's instance as JSON: like `Instance.record`, with null for what only its owner knows.

    `owner` is that node, `owner_is_alive` whether it has renewed its lease lately.
    """
    spec = record.spec
    ready_at = record.ready_at
    return {
        "instance_id": record.instance_id,
        "model_name": record.model_name,
        "served_model_name": record.served_model_name,
        "engine": spec.engine,
        "status": record.state.value,
        "status_reason": record.status_reason,
        "sleep_level": record.sleep_level or None,
        "profile": spec.profile,
        "pinned": record.pinned,
        "host": record.host,
        "port": record.port,
        "pid": record.pid,
        "pid_start_time": None,
        "params": mask_params(record.params),
        "command": list(record.command),
        "timeout": record.timeout_s,
        "expires_at": None,
        "last_active": None,
        "in_flight": None,
        "devices": None if spec.devices is None else list(spec.devices),
        "memory_bytes": record.memory_bytes,
        "created_at": record.created_at,
        "ready_at": ready_at,
        "load_seconds": None if ready_at is None else ready_at - record.started_at,
        "restarts": max(0, record.generation - 1),
        "log_path": record.log_path,
        "error": None if record.failure is None else dict(record.failure),
        "owner": record.owner,
        "owner_is_alive": is_alive,
    }


def _plan(spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
    """How to start it again. If that is no longer possible, only starting it fails: it may be running now."""
    try:
        return plan_launch(spec, config)
    except ManagerError as error:
        failure = InstanceFailure(FailureClass.BAD_ARGUMENTS, error.message)

        def refuse(host: str, port: int) -> list[str]:
            raise EngineFailed(failure)

        return LaunchPlan(refuse, spec.params, spec.model_name, spec.health_path or "/health", False)


def _failure(stored: dict[str, Any]) -> InstanceFailure:
    """A failure class that this version doesn't know (a newer one wrote it) counts as a crash."""
    name = stored.get("class")
    failure_class = FailureClass(name) if name in set(FailureClass) else FailureClass.CRASHED
    return InstanceFailure(
        failure_class,
        str(stored.get("message", "")),
        stored.get("exit_code"),
        stored.get("signal"),
        tuple(stored.get("log_tail") or ()),
    )
