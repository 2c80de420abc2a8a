"""An instance as clients see it, whichever node supervises it. Frozen; knows no supervisor and no store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instance_manager.backends import backend_of
from instance_manager.backends.load_signs import LoadProgress
from instance_manager.backends.params import mask_params
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import InstanceFailure


@dataclass(frozen=True, slots=True)
class LiveFacts:
    """What only an instance's own node knows. Points in time are seconds since the epoch."""

    pid_start_time: float | None = None
    expires_at: float | None = None
    last_active: float | None = None
    in_flight: int | None = None
    load: LoadProgress | None = None  # while it starts


@dataclass(frozen=True, slots=True)
class InstanceView:
    """A record with the live facts, which are unknown (null) for another node's instance."""

    record: InstanceRecord
    live: LiveFacts = LiveFacts()
    owner_is_alive: bool | None = None  # whether that other node has renewed its lease lately; None = ours

    def to_json(self) -> dict[str, Any]:
        """Points in time are seconds since the epoch, durations seconds. Secrets are masked or left out."""
        record, live, spec = self.record, self.live, self.record.spec
        ready_at = record.ready_at
        shown = {
            "instance_id": record.instance_id,
            "model_name": record.model_name,
            "served_model_name": record.served_model_name,
            "engine": spec.engine,
            "engine_reason": spec.engine_reason or None,
            "status": record.state.value,
            "status_reason": record.status_reason,
            "sleep_level": record.sleep_level or None,
            "profile": spec.profile,
            "pinned": record.pinned,
            "host": record.host,
            "port": record.port,
            "pid": record.pid,
            "pid_start_time": live.pid_start_time,
            "params": mask_params(record.params),
            "command": list(record.command),
            "container": _container(record),
            "timeout": record.timeout_s,
            "expires_at": live.expires_at,
            "last_active": live.last_active,
            "in_flight": live.in_flight,
            "devices": None if spec.devices is None else list(spec.devices),
            "memory_bytes": record.memory_bytes,
            "created_at": record.created_at,
            "ready_at": ready_at,
            "load_phase": None if live.load is None else live.load.phase,
            "load_progress": None if live.load is None else live.load.fraction,
            "load_seconds": None if ready_at is None else ready_at - record.started_at,
            "restarts": max(0, record.generation - 1),
            "log_path": record.log_path,
            "error": None if record.failure is None else dict(record.failure),
        }
        if self.owner_is_alive is not None:
            shown |= {"owner": record.owner, "owner_is_alive": self.owner_is_alive}
        return shown


def _container(record: InstanceRecord) -> dict[str, Any] | None:
    """None for a plain process. Before the container runs, only its runtime and image are known."""
    spec, found = record.spec, record.extra.get("container")
    if spec.runtime is None:
        return None
    known = found if isinstance(found, Mapping) else {}
    return {
        "runtime": spec.runtime,
        "image": spec.image or backend_of(spec.engine).image,
        "name": known.get("name"),
        "id": known.get("container_id"),
        "pid": known.get("pid"),
    }


def failure_record(failure: InstanceFailure) -> dict[str, Any]:
    """A failure as JSON."""
    return {
        "class": failure.failure_class.value,
        "message": failure.message,
        "exit_code": failure.exit_code,
        "signal": failure.signal,
        "log_tail": list(failure.log_tail),
    }
