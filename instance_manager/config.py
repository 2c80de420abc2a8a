"""The manager's policy, as app.py hands it down from the settings. Durations in seconds."""

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
    limit: int = 5  # restarts within the window; then it stays failed until somebody starts it
    window_s: float = 600.0
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 60.0


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """Seconds; 0 = it isn't looked at."""

    interval_s: float = 10.0  # between two probes
    stall_s: float = 300.0  # without a step although there is work
    timeout_s: float = 5.0  # of one probe


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
    default_idle_timeout_s: float = 600.0
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
