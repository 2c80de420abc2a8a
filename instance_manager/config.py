"""The manager's configuration, derived from the settings by the application. Durations in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from instance_manager.types import ExpireAction


class RestartPolicy(StrEnum):
    """The setting's values."""

    NEVER = "never"
    ON_FAILURE = "on-failure"


@dataclass(frozen=True, slots=True)
class RestartRules:
    """Durations in seconds. The back-off doubles with each restart within the window."""

    policy: RestartPolicy = RestartPolicy.NEVER
    limit: int = 5  # restarts within the window; after that it stays failed until a start request
    window_s: float = 600.0
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 60.0


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """In seconds; 0 = not checked."""

    interval_s: float = 10.0  # between probes
    stall_s: float = 300.0  # without progress while requests are pending
    timeout_s: float = 5.0  # of one probe


class OnShutdown(StrEnum):
    """What an orderly shutdown does with the engines; the setting's values."""

    STOP = "stop"
    DETACH = "detach"  # they keep running, and the next Berth process adopts them


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """Durations in seconds."""

    host: str = "127.0.0.1"  # where engines listen
    base_port: int = 9000
    max_instances: int = 20
    default_engine: str = "auto"  # or the name of a kind
    default_model: str = "berth-demo"
    default_idle_timeout_s: float = 600.0
    expire_action: ExpireAction = ExpireAction.STOP
    start_timeout_s: float = 600.0
    start_timeout_cap_s: float = 3600.0  # limit for a start that keeps making progress
    stop_grace_s: float = 10.0
    drain_timeout_s: float = 30.0
    max_queue: int = 256  # requests waiting for one instance
    max_in_flight: int = 0  # per instance; 0 = no limit
    restart: RestartRules = field(default_factory=RestartRules)
    liveness: LivenessRules = field(default_factory=LivenessRules)
    log_dir: Path = Path("logs")
    log_max_bytes: int = 10 * 1024 * 1024
    log_ring_lines: int = 1000
    state_url: str = "memory://"  # the state store, see stores/open.py
    advertise_url: str = ""  # where other nodes on the same store reach this one
    state_dir: Path | None = None  # this node's own; None = nothing is kept, as in tests
    on_shutdown: OnShutdown = OnShutdown.STOP
    run_dir: Path | None = None  # of the shims' status files; None = below log_dir
    use_shim: bool = True  # if the platform supports it; without one, only the process group is managed
    model_dirs: tuple[Path, ...] = ()
    default_params: Mapping[str, Any] = field(default_factory=dict)  # VLLM_DEFAULT_* and VLLM_CONFIG, merged
    options: Mapping[str, Any] = field(default_factory=dict)  # settings about one engine kind, by field
    engine_env: Mapping[str, str] = field(default_factory=dict)  # HF_HOME, proxies …: only for engines

    def status_path(self, instance_id: str) -> Path:
        """The status file of the instance's shim."""
        return (self.run_dir or self.log_dir / "run") / f"{instance_id}.json"

    def log_path(self, instance_id: str) -> Path:
        """The file that the instance's engine writes its output to."""
        return self.log_dir / f"{instance_id}.log"
