"""Every setting of Berth: its default, its checks and its description; frozen.

Knows nothing of the settings' use; composition/ turns them into the parts' own policies.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from configs.base_url import is_base_url
from configs.engine_kinds import AUTO
from configs.home import expand_home
from configs.key_file import KeyFileError, KeyLine, read_key_file
from configs.origins import normalized_origin
from configs.parameter_file import read_parameters
from configs.root import CODE, HOME
from configs.settings_error import SettingsError
from configs.syslog_address import SyslogAddress

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_PATHS = (
    "api_keys_file", "hf_home", "log_dir", "log_file",
    "model_dirs", "models_file", "state_dir", "vllm_config",
)  # fmt: skip


class Settings(BaseSettings):
    """All settings; a field's environment variable is its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    app_host: str = Field(
        "0.0.0.0",  # noqa: S104 - without keys, only local clients are served, see api/auth.py
        description="Address to listen on; `0.0.0.0` = all addresses, including IPv6",
    )
    app_port: int = Field(5000, ge=0, le=65535, description="Port to listen on")
    app_debug: bool = Field(False, description="Debug logging, whatever `LOG_LEVEL` is")

    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="API keys for requests to models, separated by commas; empty = only local clients",
    )
    admin_api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), repr=False, description="API keys for everything; empty = only local clients"
    )
    api_keys_file: Path | None = Field(
        None, description="File with more API keys, with names and limits; see SECURITY.md"
    )

    request_paths: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Further engine routes that `API_KEYS` may use, such as `/predict`, `/custom/*`, "
        "`/all/below/**`, separated by commas; see SECURITY.md",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins of web pages that may use Berth from a browser, such as "
        "`https://app.example.com`, separated by commas; `*` = all",
    )

    vllm_base_port: int = Field(
        9000, ge=1, le=65535, description="First port for engines; further ports follow it"
    )
    vllm_max_instances: int = Field(
        20, ge=1, le=1000, description="Maximum number of instances, and thus of ports"
    )
    vllm_default_dtype: str = Field("auto", description="`--dtype` for engines")
    vllm_default_kv_cache_dtype: str = Field("auto", description="`--kv-cache-dtype` for engines")
    vllm_default_trust_remote_code: bool = Field(True, description="`--trust-remote-code`, for vLLM only")
    vllm_default_timeout: Seconds = Field(
        600.0, description="Seconds without a request after which an instance expires; 0 = never"
    )
    vllm_config: Path = Field(
        CODE / "configs" / "vllm_config.json", description="JSON file with parameters for all engines"
    )
    vllm_python: str | None = Field(None, description="Python interpreter with vLLM installed")

    hf_endpoint: str | None = Field(None, description="Model hub from which engines download")
    hf_home: str | None = Field(None, description="Folder of the hub's cache")
    http_proxy: str | None = Field(None, description="HTTP proxy for engines' downloads only")
    https_proxy: str | None = Field(None, description="HTTPS proxy for engines' downloads only")

    default_engine: str = Field(  # checked where it is read: this module knows no kinds
        AUTO, description="Engine for requests that name none; `auto` = `engine`, the embedded one"
    )
    default_model: str = Field("berth-demo", description="Model for requests that name none")
    model_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        tuple(dict.fromkeys((HOME / "models", CODE / "models"))),
        description="Folders whose subfolders are models, or hub caches, separated as in PATH",
    )

    start_timeout: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a start may take; extended while the engine's log grows",
    )
    stop_grace: Seconds = Field(
        10.0, description="Seconds between SIGTERM and SIGKILL when an engine is stopped"
    )
    drain_timeout: Seconds = Field(
        30.0, description="Seconds that requests in flight get to finish before a stop"
    )
    restart_policy: Literal["never", "on-failure"] = Field(
        "on-failure",
        description="Whether to restart an instance, or a model of the catalog, that fails while running",
    )
    restart_limit: int = Field(
        5,
        ge=1,
        description="Restarts within ten minutes, after which it stays failed until started or requested",
    )
    health_interval: Seconds = Field(
        10.0, description="Seconds between health probes of running engines; 0 = no probes"
    )
    stall_timeout: Seconds = Field(
        300.0,
        description="Seconds without progress on its requests after which an engine has failed; 0 = never",
    )
    max_queue: int = Field(
        256, ge=0, description="Maximum number of requests that wait for a model or an instance"
    )
    autostart: bool = Field(True, description="Start or wake a model when it is requested by name")
    stream_keepalive: Seconds = Field(
        10.0, description="Seconds between keep-alive comments while a stream waits for its model; 0 = none"
    )
    expire_action: Literal["stop", "sleep1", "sleep2"] = Field(
        "stop",
        description="What to do with an expired instance: stop it, or free its KV cache (`sleep1`) or also "
        "its weights (`sleep2`)",
    )
    models_file: Path = Field(
        HOME / "configs" / "models.yaml", description="The catalog: the models and how to run them"
    )
    host_memory: float = Field(
        0.9,
        gt=0,
        allow_inf_nan=False,
        description="Host memory for all engines together: a fraction up to 1, else GiB",
    )
    min_residency: Seconds = Field(
        10.0, description="Seconds that a model stays in memory before another may displace it"
    )
    max_wait: Seconds = Field(
        60.0, description="Seconds that a request waits before a busy model is drained to free memory for it"
    )
    protocol_plugins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Protocol adapters to load: `module:Class` or entry points, separated by commas"
    )
    response_cache_mb: int = Field(
        0, ge=0, description="Size of the cache for deterministic responses in MiB; 0 = no cache"
    )
    share_caches: bool = Field(False, description="Whether API keys share cached prefixes and responses")
    state_dir: Path = Field(
        HOME / "state", description="Folder for persistent state; each node needs its own"
    )
    state_url: str = Field(
        "sqlite:///berth.db",
        repr=False,
        description="Where to store instances: `sqlite:///FILE` (in STATE_DIR), `redis://HOST:6379/0`, "
        "`memory://`",
    )
    advertise_url: str | None = Field(
        None,
        description="Where other nodes on the same `STATE_URL` reach this one, `http://HOST:PORT`; "
        "empty = `APP_HOST`, or this machine's name, and `APP_PORT`",
    )
    on_shutdown: Literal["stop", "detach"] = Field(
        "stop",
        description="What to do with engines when Berth ends: stop them, or leave them to the next process",
    )
    unknown_fields: Literal["warn", "refuse"] = Field(
        "warn",
        description="How the embedded engine treats unknown request fields: with a warning, or a refusal",
    )
    max_in_flight: int = Field(
        0, ge=0, description="Maximum number of requests in flight per instance; 0 = no limit"
    )
    client_timeout: Seconds = Field(
        30.0,
        description="Seconds after which a client slower than `CLIENT_MIN_RATE` is disconnected if other "
        "requests wait for its slot; 0 = never",
    )
    client_min_rate: int = Field(
        1024, ge=0, description="Bytes per second that a client must read or send while it is behind"
    )
    max_connections: int = Field(
        4096, ge=1, description="Maximum number of connections; beyond it, those idle longest are closed"
    )
    max_body_mb: int = Field(256, ge=1, description="Maximum size of a request body in MiB")

    log_dir: Path = Field(HOME / "logs", description="Folder for the engines' log files")
    log_file: Path | None = Field(
        None, description="Additional file for Berth's own log lines; may be rotated"
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        "info", description="Level of Berth's own log: debug, info, warning, error or critical"
    )
    log_format: Literal["text", "json"] = Field("text", description="Format of Berth's own log lines")
    access_log: bool = Field(False, description="Log a line per request; `APP_DEBUG` implies it")
    log_syslog: str | None = Field(
        None, description="Syslog server for log lines: `udp://host:514`, `tcp://host:514`, `/dev/log`"
    )
    log_otlp: bool = Field(False, description="Also send log lines to `OTEL_EXPORTER_OTLP_ENDPOINT`")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector for traces, `http://host:4318`"
    )
    otel_service_name: str = Field("berth", description="Berth's service name in traces and logs")

    @field_validator(
        "api_keys", "admin_api_keys", "request_paths", "allowed_origins", "protocol_plugins", mode="before"
    )
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(filter(None, (key.strip() for key in value.split(","))))
        return value

    @field_validator("request_paths")
    @classmethod
    def _check_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not re.fullmatch(r"(/(?!\*\*/)(\*\*?|[A-Za-z0-9._~-]+))+", path) or "/.." in path:
                raise ValueError(
                    "must be engine paths such as /predict or /custom/*, with ** only at the end"
                )
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normalized_origin(one) for one in value)

    @field_validator("log_level", mode="before")
    @classmethod
    def _read_level(cls, value: Any) -> Any:
        level = value.strip().lower() if isinstance(value, str) else value
        return {"trace": "debug", "warn": "warning", "fatal": "critical"}.get(level, level)

    @field_validator(
        "default_engine", "restart_policy", "expire_action", "on_shutdown", "unknown_fields", "log_format",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _read_choice(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("log_syslog")
    @classmethod
    def _check_syslog(cls, value: str | None) -> str | None:
        if value is not None:
            SyslogAddress.parse(value)
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _check_otlp(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError(
                "must be the URL of a collector that accepts OTLP over HTTP, such as http://host:4318"
            )
        return value

    @field_validator("advertise_url")
    @classmethod
    def _check_advertise_url(cls, value: str | None) -> str | None:
        if value is not None and not is_base_url(value):
            raise ValueError("must be the URL of this node, http://HOST:PORT, without a path")
        return value

    @field_validator("model_dirs", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator(*_PATHS)
    @classmethod
    def _locate(cls, value: Any) -> Any:
        """Make paths absolute: engines run in another folder than Berth."""
        if isinstance(value, tuple):
            return tuple(expand_home(one).absolute() for one in value)
        return value if value is None else type(value)(expand_home(value).absolute())

    @field_validator("vllm_python")
    @classmethod
    def _locate_program(cls, value: str | None) -> str | None:
        is_name = value is None or not ("/" in value or value.startswith("~"))
        return value if is_name else str(expand_home(value or "").absolute())

    def parameters(self) -> dict[str, Any]:
        """Parameters for engines with vLLM's flags: VLLM_DEFAULT_*, overridden by the file VLLM_CONFIG."""
        defaults = {"dtype": self.vllm_default_dtype, "kv_cache_dtype": self.vllm_default_kv_cache_dtype}
        return {**defaults, **read_parameters(self.vllm_config)}

    def listed_keys(self) -> tuple[KeyLine, ...]:
        """The keys in API_KEYS_FILE. Raises SettingsError."""
        if self.api_keys_file is None:
            return ()
        try:
            return read_key_file(self.api_keys_file)
        except KeyFileError as error:
            raise SettingsError(f"API_KEYS_FILE={self.api_keys_file}: {error}") from None


NAMES = frozenset(name.upper() for name in Settings.model_fields)
