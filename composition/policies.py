"""Turns the settings into the policies of the parts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from api.access.key_store import Keys
from api.access.keys import Access, ApiKey
from api.cors import Origins
from api.proxy.pace import PaceRules
from configs.engine_kinds import AUTO, EngineKinds
from configs.engine_variables import engine_variables
from configs.settings import Settings
from configs.settings_error import SettingsError
from instance_manager.backends import BACKENDS, EngineChoice
from instance_manager.config import LivenessRules, ManagerConfig, OnShutdown, RestartPolicy, RestartRules
from instance_manager.errors import InvalidKeyFile
from instance_manager.state.stores.errors import InvalidStateUrl
from instance_manager.state.stores.open import check_url
from instance_manager.types import ExpireAction

ENV_FILE = Path(".env")


def engine_kinds() -> EngineKinds:
    """The engines that settings and models.yaml may name."""
    by_command = [name for name, backend in BACKENDS.items() if backend.runs_command]
    return EngineKinds(tuple(BACKENDS), next(iter(by_command), None))


def manager_config(settings: Settings, env_file: Path | None = None) -> ManagerConfig:
    """The manager's policy."""
    return ManagerConfig(
        base_port=settings.vllm_base_port,
        max_instances=settings.vllm_max_instances,
        default_engine=settings.default_engine,
        default_model=settings.default_model,
        default_idle_timeout_s=settings.vllm_default_timeout,
        expire_action=ExpireAction(settings.expire_action),
        start_timeout_s=settings.start_timeout,
        start_timeout_cap_s=max(3600.0, settings.start_timeout),
        stop_grace_s=settings.stop_grace,
        drain_timeout_s=settings.drain_timeout,
        restart=RestartRules(RestartPolicy(settings.restart_policy), limit=settings.restart_limit),
        liveness=LivenessRules(settings.health_interval, settings.stall_timeout),
        max_queue=settings.max_queue,
        max_in_flight=settings.max_in_flight,
        log_dir=settings.log_dir,
        run_dir=settings.state_dir / "run",
        state_dir=settings.state_dir,
        state_url=state_url(settings),
        advertise_url=_advertised(settings),
        on_shutdown=OnShutdown(settings.on_shutdown),
        model_dirs=settings.model_dirs,
        default_params=settings.parameters(),
        options=options_of(settings),
        engine_env=engine_variables(settings, env_file),
    )


def named_engine(settings: Settings, of_entry: str | None) -> EngineChoice | None:
    """The engine that a model's entry or DEFAULT_ENGINE names; None if its files decide."""
    if of_entry not in (None, AUTO):
        return EngineChoice(of_entry, "named in models.yaml")
    if settings.default_engine != AUTO:
        return EngineChoice(settings.default_engine, f"DEFAULT_ENGINE={settings.default_engine}")
    return None


def options_of(settings: Settings) -> dict[str, Any]:
    """The settings that are about one engine kind, by field."""
    return {field: getattr(settings, field) for kind in BACKENDS.values() for field in kind.settings}


def _advertised(settings: Settings) -> str:
    """The URL for other nodes; empty if the system chooses the port."""
    if settings.advertise_url or not settings.app_port:
        return settings.advertise_url or ""
    host = settings.app_host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - every address is none to name
        host = socket.gethostname()
    return f"http://[{host}]:{settings.app_port}" if ":" in host else f"http://{host}:{settings.app_port}"


def state_url(settings: Settings) -> str:
    """Raises SettingsError."""
    try:
        check_url(settings.state_url)
    except InvalidStateUrl as error:
        raise SettingsError(str(error)) from None
    return settings.state_url


def api_keys(settings: Settings) -> Keys:
    """All API keys. Raises SettingsError."""
    listed = (
        ApiKey(
            line.key,
            Access.ADMIN if line.is_admin else Access.INFERENCE,
            line.name,
            line.models,
            line.rate_per_s,
            line.burst,
        )
        for line in settings.listed_keys()
    )
    return Keys(settings.api_keys, settings.admin_api_keys, tuple(listed), settings.share_caches)


def read_keys(settings: Settings) -> Keys:
    """The same while Berth is running. Raises InvalidKeyFile."""
    try:
        return api_keys(settings)
    except SettingsError as error:
        raise InvalidKeyFile(str(error)) from error


def pace_rules(settings: Settings) -> PaceRules:
    return PaceRules(settings.client_timeout, settings.client_min_rate)


def origins_of(settings: Settings) -> Origins | None:
    """The origins whose web pages may use Berth; None disables CORS."""
    return Origins(settings.allowed_origins) if settings.allowed_origins else None
