"""Every setting of Berth: from the environment and `.env`, checked, frozen.

Knows nothing of what the settings are for; app.py hands them down as each part's own policy object.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from configs.home import expand_home
from configs.key_file import KeyFileError, KeyLine, read_key_file
from configs.origins import normalized_origin
from configs.parameter_file import read_parameters
from configs.settings_error import SettingsError
from configs.syslog_address import SyslogAddress

ROOT = Path(__file__).resolve().parent.parent
_PATHS = (
    "api_keys_file", "hf_home", "log_dir", "log_file",
    "model_dirs", "models_file", "state_dir", "vllm_config",
)  # fmt: skip


class Settings(BaseSettings):
    """All settings; the environment's name of a field is its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    app_host: str = Field(
        "0.0.0.0",  # noqa: S104 - without keys only this machine is answered, see api/auth.py
        description="Address that Berth listens on; `0.0.0.0`: all there are, of IPv6 too",
    )
    app_port: int = Field(5000, ge=0, le=65535, description="Port that Berth listens on")
    app_debug: bool = Field(False, description="Debug logging, whatever `LOG_LEVEL` says")

    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Keys for requests to models, separated by commas; without any: this machine's callers",
    )
    admin_api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), repr=False, description="Keys for everything; without any: this machine's callers"
    )
    api_keys_file: Path | None = Field(
        None, description="File of more keys, with names and limits, see SECURITY.md"
    )

    request_paths: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="More routes of engines that keys for requests are good for, `/predict`, `/custom/*`, "
        "`/all/below/**`, separated by commas; SECURITY.md",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Web pages that may use Berth from a browser, `https://app.example.com`, separated by "
        "commas; `*`: all",
    )

    vllm_base_port: int = Field(9000, ge=1, le=65535, description="First port of engines; the next follow")
    vllm_max_instances: int = Field(20, ge=1, le=1000, description="Instances, and so ports, at most")
    vllm_default_dtype: str = Field("auto", description="`--dtype` of engines")
    vllm_default_kv_cache_dtype: str = Field("auto", description="`--kv-cache-dtype` of engines")
    vllm_default_trust_remote_code: bool = Field(True, description="`--trust-remote-code`, for vLLM only")
    vllm_default_timeout: float = Field(
        600.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds without a request until an instance expires; 0: never",
    )
    vllm_config: Path = Field(
        ROOT / "configs" / "vllm_config.json", description="JSON file with parameters for all engines"
    )
    vllm_python: str | None = Field(None, description="Python interpreter that has vLLM installed")

    hf_endpoint: str | None = Field(None, description="Model hub that engines download from")
    hf_home: str | None = Field(None, description="Folder of the hub's cache")
    http_proxy: str | None = Field(None, description="Proxy for engines' downloads, for nothing else")
    https_proxy: str | None = Field(None, description="The same, for https")

    default_engine: Literal["auto", "engine", "vllm"] = Field(
        "auto", description="Engine for requests that name none; auto = engine"
    )
    default_model: str = Field("berth-demo", description="Model for requests that name none")
    model_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (ROOT / "models",),
        description="Folders whose subfolders are models, or hub caches, separated as in PATH",
    )

    start_timeout: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds a start may take; more while its log grows",
    )
    stop_grace: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="Seconds between SIGTERM and SIGKILL"
    )
    drain_timeout: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that requests in flight get before a stop",
    )
    restart_policy: Literal["never", "on-failure"] = Field(
        "on-failure", description="Whether an instance that was running and failed starts again by itself"
    )
    restart_limit: int = Field(
        5, ge=1, description="Restarts within ten minutes; then an instance stays failed until it is started"
    )
    health_interval: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="Seconds between health probes of what runs; 0 = none"
    )
    stall_timeout: float = Field(
        300.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds without a step, with requests, after which an engine has failed; 0 = never",
    )
    max_queue: int = Field(256, ge=0, description="Requests that may wait for one instance")
    autostart: bool = Field(True, description="Start or wake a model that is asked for by name")
    stream_keepalive: float = Field(
        10.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a stream waits for its model before, and between, comments; 0 = none",
    )
    expire_action: Literal["stop", "sleep1", "sleep2"] = Field(
        "stop", description="What expiry does: stop, or sleep (1: KV cache freed, 2: weights too)"
    )
    models_file: Path = Field(
        ROOT / "configs" / "models.yaml", description="The catalog: which models there are, and how they run"
    )
    host_memory: float = Field(
        0.9,
        gt=0,
        allow_inf_nan=False,
        description="Host memory for engines: up to 1 a fraction of it, above that GiB",
    )
    min_residency: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="Seconds a model stays before another may displace it"
    )
    max_wait: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds a request waits until a model in use is drained to make room for its own",
    )
    protocol_plugins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Protocol adapters to load: `module:Class` or entry points, separated by commas"
    )
    response_cache_mb: int = Field(
        0, ge=0, description="Size of the cache of deterministic answers; 0 = none"
    )
    share_caches: bool = Field(
        False, description="Whether keys find cached prefixes and answers of each other's requests"
    )
    state_dir: Path = Field(
        ROOT / "state", description="Folder for what Berth remembers; each Berth has one of its own"
    )
    state_url: str = Field(
        "sqlite:///berth.db",
        repr=False,
        description="Where instances are kept: `sqlite:///FILE` (in STATE_DIR), `redis://HOST:6379/0`, "
        "`memory://`",
    )
    advertise_url: str | None = Field(
        None,
        description="Where other Berths on the same `STATE_URL` reach this one, `http://HOST:PORT`; "
        "empty = by `APP_HOST`, or this machine's name, and `APP_PORT`",
    )
    on_shutdown: Literal["stop", "detach"] = Field(
        "stop", description="What becomes of engines when Berth ends: they end, or the next Berth has them"
    )
    unknown_fields: Literal["warn", "refuse"] = Field(
        "warn",
        description="Fields of requests that the embedded engine doesn't know: warned of, or refused",
    )
    max_in_flight: int = Field(0, ge=0, description="Requests in flight for one instance; 0 = no limit")
    client_timeout: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds within which a client that reads or sends less than `CLIENT_MIN_RATE` is cut "
        "off, where others wait for its place; 0: never",
    )
    client_min_rate: int = Field(
        1024, ge=0, description="Bytes a second that a client has to read or send then, where it is behind"
    )
    max_connections: int = Field(4096, ge=1, description="Clients connected at once; the idle ones give way")
    max_body_mb: int = Field(256, ge=1, description="Megabytes (2^20) of a request's body at most")

    log_dir: Path = Field(ROOT / "logs", description="Folder of the engines' log files")
    log_file: Path | None = Field(
        None, description="File that Berth's own log lines go to as well; may be rotated"
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        "info", description="What Berth says of itself: debug, info, warning, error or critical"
    )
    log_format: Literal["text", "json"] = Field("text", description="Berth's own log lines")
    access_log: bool = Field(False, description="A log line per request; `APP_DEBUG` has them too")
    log_syslog: str | None = Field(
        None, description="Where log lines go as well: `udp://host:514`, `tcp://host:514`, `/dev/log`"
    )
    log_otlp: bool = Field(False, description="Send log lines to `OTEL_EXPORTER_OTLP_ENDPOINT` as well")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector that gets traces, `http://host:4318`"
    )
    otel_service_name: str = Field("berth", description="What Berth is called there")

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
        for one in value:
            if not re.fullmatch(r"(/(?!\*\*/)(\*\*?|[A-Za-z0-9._~-]+))+", one) or "/.." in one:
                raise ValueError("must be paths of engines, /predict or /custom/*, and ** only at the end")
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
            raise ValueError("must be the URL of a collector that takes OTLP over HTTP, http://host:4318")
        return value

    @field_validator("advertise_url")
    @classmethod
    def _check_advertise_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_front_door(value):
            raise ValueError("must be the URL of this Berth's front door, http://HOST:PORT, without a path")
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
        """Engines run in another folder than Berth, and what is said of a path is read in a third."""
        if isinstance(value, tuple):
            return tuple(expand_home(one).absolute() for one in value)
        return value if value is None else type(value)(expand_home(value).absolute())

    @field_validator("vllm_python")
    @classmethod
    def _locate_program(cls, value: str | None) -> str | None:
        is_name = value is None or not ("/" in value or value.startswith("~"))
        return value if is_name else str(expand_home(value or "").absolute())

    def parameters(self) -> dict[str, Any]:
        """Parameters for every engine that takes vLLM's flags: VLLM_DEFAULT_*, then the file VLLM_CONFIG."""
        defaults = {"dtype": self.vllm_default_dtype, "kv_cache_dtype": self.vllm_default_kv_cache_dtype}
        return {**defaults, **read_parameters(self.vllm_config)}

    def listed_keys(self) -> tuple[KeyLine, ...]:
        """What API_KEYS_FILE holds. Raises SettingsError."""
        if self.api_keys_file is None:
            return ()
        try:
            return read_key_file(self.api_keys_file)
        except KeyFileError as error:
            raise SettingsError(f"API_KEYS_FILE={self.api_keys_file}: {error}") from None


NAMES = frozenset(name.upper() for name in Settings.model_fields)


def _is_front_door(url: str) -> bool:
    try:
        parts = urlsplit(url)
        at = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        plain = at if parts.port is None else f"{at}:{parts.port}"
    except ValueError:
        return False
    return at is not None and url.rstrip("/").lower() == f"http://{plain}"
