"""An instance as it is stored, and back. Knows no store and no process."""

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
from instance_manager.lifecycle.instance import Instance, failure_record, new_instance
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import FailureClass, InstanceFailure, InstanceSpec, RunSecrets


def record_of(one: Instance, owner: str, boot_id: str | None, *, is_wanted: bool) -> InstanceRecord:
    """All that a later Berth needs. `is_wanted`: it runs, or is to run without anybody's further doing."""
    secrets = one.secrets
    return InstanceRecord(
        instance_id=one.instance_id,
        state=one.state,
        owner=owner,
        spec=one.spec,
        model_name=one.model_name,
        served_model_name=one.served_model_name,
        params=one.plan.params,
        command=tuple(mask_command(one.command)),
        host=one.host,
        port=one.port,
        pid=one.pid,
        pid_start_ticks=one.pid_start_ticks,
        boot_id=boot_id,
        token=None if secrets is None else secrets.token,
        api_key=None if secrets is None else secrets.api_key,
        generation=one.generation,
        log_path=str(one.log_path),
        status_reason=one.status_reason,
        failure=None if one.failure is None else failure_record(one.failure),
        timeout_s=one.idle_timeout_s,
        pinned=one.pinned,
        sleep_level=one.level,
        memory_bytes=one.memory_bytes,
        created_at=one.created_at,
        started_at=one.started_at,
        ready_at=one.ready_at,
        last_active=one.last_active_at,
        updated_at=time.time(),
        extra={
            "is_wanted": is_wanted,
            "log_start": one.log_start,
            "names": list(one.names),
            "runner": one.runner,
        },
    )


def instance_of(
    record: InstanceRecord, config: ManagerConfig, events: EventLog, clock: Callable[[], float]
) -> Instance:
    """The instance, of which nobody has been told yet; without a process. What has not ended idles anew."""
    one = new_instance(
        record.instance_id,
        record.spec,
        _plan(record.spec, config),
        config=config,
        events=events,
        clock=clock,
        port=None,
        log_path=Path(record.log_path or config.log_dir / f"{record.instance_id}.log"),
    )
    one.state = record.state
    one.status_reason = record.status_reason
    one.failure = None if record.failure is None else _failure(dict(record.failure))
    one.idle_timeout_s = record.timeout_s
    one.pinned = record.pinned
    one.command = list(record.command)
    one.created_at, one.started_at, one.ready_at = record.created_at, record.started_at, record.ready_at
    one.generation = record.generation
    one.level = record.sleep_level
    one.log_start = int(record.extra.get("log_start", 0))
    if record.state.is_terminal and record.last_active:
        one.gate.last_active = clock() - (time.time() - record.last_active)
    if record.token and record.api_key:
        one.secrets = RunSecrets(record.token, record.api_key)
    return one


def peer_instance_json(record: InstanceRecord, *, is_alive: bool) -> dict[str, Any]:
    """Another Berth's instance as JSON: as `Instance.record`, with what only its own Berth knows left out.

    `owner` is that Berth, and `owner_is_alive` whether it has been heard of lately.
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
    """How it is started again. Where that isn't possible any more, say so then: it may be running now."""
    try:
        return plan_launch(spec, config)
    except ManagerError as error:
        failure = InstanceFailure(FailureClass.BAD_ARGUMENTS, error.message)

        def refuse(host: str, port: int) -> list[str]:
            raise EngineFailed(failure)

        return LaunchPlan(refuse, spec.params, spec.model_name, spec.health_path or "/health", False)


def _failure(stored: dict[str, Any]) -> InstanceFailure:
    """One of a class that this Berth doesn't know (a newer one wrote it) counts as a crash."""
    name = stored.get("class")
    known = FailureClass(name) if name in set(FailureClass) else FailureClass.CRASHED
    return InstanceFailure(
        known,
        str(stored.get("message", "")),
        stored.get("exit_code"),
        stored.get("signal"),
        tuple(stored.get("log_tail") or ()),
    )
