"""The composition root: reads the settings, builds the parts, hands each its policy, and serves.

`create_app(settings)` gives the ASGI application; `python app.py` serves it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from api.access.engine_routes import RequestRoutes
from api.access.key_book import KeyBook, Keys
from api.access.keys import Access, ApiKey
from api.auth import AccessControl
from api.control import usage_report
from api.control.app import create_control_app
from api.control.catalog import ModelFiles
from api.control.metrics_page import MetricsPage
from api.cors import Cors, Origins
from api.gateway.gateway import UNVERSIONED, Gateway
from api.gateway.response_cache import ResponseCache
from api.http.asgi import App, Scope
from api.http.dispatch import Dispatcher, raw_path
from api.http.response_channel import DirectApp, HandOver, ResponseChannel
from api.protocols.app import ProtocolApp
from api.protocols.registry import PluginError, load_protocols
from api.proxy.pace import PaceRules
from api.proxy.peer_routes import Detours
from api.proxy.proxy import DataPlane
from api.server import garbage
from api.server.connection_limits import ConnectionLimits
from api.server.content_coding import DecodingApp
from api.server.descriptors import connections_within, raise_descriptor_limit
from api.server.guarded_http import GuardedHttpProtocol
from api.server.guarded_ws import GuardedWebSocket
from api.server.listening import bind
from api.telemetry.trace_export import InstanceSpans, TraceExport
from api.telemetry.tracing import Tracing
from configs.catalog import Catalog, CatalogFile, load_catalog
from configs.catalog_edit import edit_model, preview_edit
from configs.catalog_error import CatalogError
from configs.discovery import Discovery, FoundModel, config_problem, files_at, look_for_models
from configs.home import expand_home
from configs.model_entry import ModelEntry
from configs.one_line import one_line
from configs.remarks import Remark, Report
from configs.service_flags import FlagError, parse_flags
from configs.settings import Loaded, Settings, SettingsError, read_settings
from configs.settings_remarks import remarks_on
from instance_manager.config import LivenessRules, ManagerConfig, OnShutdown, RestartPolicy, RestartRules
from instance_manager.errors import InstanceNotFound, InvalidCatalog, InvalidKeyFile
from instance_manager.fleet.fleet import Fleet, FleetConfig
from instance_manager.fleet.memory_planner import RoomConfig, RoomKeeper
from instance_manager.fleet.profiles import ModelProfile, ModelSource
from instance_manager.fleet.startable import problem_of, told_together
from instance_manager.hub.pull import Pulls
from instance_manager.manager import InstanceManager
from instance_manager.memory.eviction import EvictionPolicy
from instance_manager.memory.gpu import GpuDriver
from instance_manager.memory.measurements import Measurements
from instance_manager.metrics.lifecycle import LifecycleMetrics
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.metrics.state import model_label
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache
from instance_manager.state.stores.errors import InvalidStateUrl, StoreError
from instance_manager.state.stores.open import check_url
from instance_manager.types import Event, ExpireAction, InstanceState
from log_output.remote_logs import RemoteLogs
from log_output.setup import configure_logging, send_to_otlp, send_to_syslog

VERSION = "0.1.0"
ENV_FILE = Path(".env")

logger = logging.getLogger("berth")


def create_app(settings: Settings, env_file: Path | None = None) -> DirectApp:
    """The whole of Berth as one ASGI application; its lifespan owns the engines."""
    return _compose(settings, env_file)[0]


def _compose(settings: Settings, env_file: Path | None) -> tuple[DirectApp, InstanceManager, Pulls]:
    manager = InstanceManager(manager_config(settings, env_file))
    adapters = load_protocols(settings.protocol_plugins)
    driver = GpuDriver(os.environ)
    fleet = _fleet(settings, manager, driver)
    source = CatalogProfiles(
        settings, frozenset(adapter.name for adapter in adapters), _hub_cache(manager.config)
    )
    keys = KeyBook(api_keys(settings), settings.api_keys_file, partial(_read_keys, settings))
    models = ModelFiles(fleet, source, driver.list_gpus, keys)
    pulls = Pulls(manager.config.engine_env)

    def model_of(instance_id: str) -> str | None:
        try:
            return model_label(manager.get(instance_id))
        except InstanceNotFound:
            return None

    metrics, lifecycle = ProxyMetrics(model_of, manager.usage.add), LifecycleMetrics(model_of)
    metrics_page = MetricsPage(fleet, metrics, lifecycle, driver, version=VERSION)
    detours = Detours(
        manager.neighbours, metrics, lambda: manager.state.session.owner, manager.check_takes_requests
    )
    data_plane = DataPlane(manager, metrics, detours=detours, sleep=manager, pace=_pace(settings))

    def let_go(event: Event) -> None:
        if event.type == "instance.deleted":
            metrics.forget(event.instance_id)
        elif event.type == "instance.state" and event.data["previous"] == InstanceState.RUNNING:
            data_plane.forget(event.instance_id)

    manager.events.add_listener(let_go)
    manager.events.add_listener(lifecycle.on_event)
    routes = sorted({adapter.route for adapter in adapters})
    control = create_control_app(
        manager, fleet, models, pulls, metrics_page, version=VERSION, translated=routes
    )
    gateway = Gateway(fleet, data_plane, comment_interval_s=settings.stream_keepalive, detours=detours)
    inner: App = gateway
    if settings.response_cache_mb:
        cache = ResponseCache(gateway, settings.response_cache_mb * 2**20, fleet.identity_of)
        inner = metrics_page.cache = cache
    protocols = ProtocolApp(
        inner, adapters, protocol_of=fleet.protocol_of, default_model=settings.default_model
    )
    inference_paths = frozenset(UNVERSIONED) | protocols.routes | {usage_report.PATH}

    def is_for_gateway(scope: Scope) -> bool:
        return Gateway.is_for(scope) or raw_path(scope) in protocols.routes

    def begin(scope: Scope, body: bytes, channel: ResponseChannel, hand_over: HandOver) -> bool:
        if inner is not gateway or raw_path(scope) in protocols.routes:
            return False  # others have a look at it first
        return gateway.begin(scope, body, channel, hand_over)

    door = DecodingApp(protocols, settings.max_body_mb * 2**20, metrics.unserved.count)
    dispatcher = Dispatcher(control, data_plane, door, is_for_gateway, begin)
    access = AccessControl(
        dispatcher,
        keys,
        inference_paths=inference_paths,
        names_served_by=partial(_names_served_by, fleet),
        on_refused=metrics.unserved.count,
        origins=(origins := _origins(settings)),
        request_routes=RequestRoutes(settings.request_paths),
    )
    return Cors(access, origins) if origins else access, manager, pulls


def _pace(settings: Settings) -> PaceRules:
    return PaceRules(settings.client_timeout, settings.client_min_rate)


def _origins(settings: Settings) -> Origins | None:
    """Whose pages may use Berth; None = nobody's, and nothing is looked at for it."""
    return Origins(settings.allowed_origins) if settings.allowed_origins else None


def api_keys(settings: Settings) -> Keys:
    """All keys that open Berth. Raises SettingsError."""
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


def _read_keys(settings: Settings) -> Keys:
    """The same while Berth runs. Raises InvalidKeyFile."""
    try:
        return api_keys(settings)
    except SettingsError as error:
        raise InvalidKeyFile(str(error)) from error


def _names_served_by(fleet: Fleet, instance_id: str) -> tuple[str, ...]:
    """What an instance's model is called; nothing for an unknown one."""
    return fleet.names_of_instance(instance_id) or fleet.manager.neighbours.names_of(instance_id)


def _fleet(settings: Settings, manager: InstanceManager, driver: GpuDriver) -> Fleet:
    host_bytes = int(settings.host_memory * 2**30) if settings.host_memory > 1 else None
    room = RoomConfig(
        host_fraction=min(1.0, settings.host_memory),
        host_bytes=host_bytes,
        policy=EvictionPolicy(min_residency_s=settings.min_residency, max_wait_s=settings.max_wait),
    )
    keeper = RoomKeeper(manager, room, Measurements(settings.state_dir), driver)
    return Fleet(manager, FleetConfig(autostart=settings.autostart, max_queue=settings.max_queue), keeper)


class CatalogProfiles:
    """models.yaml and the folders of models, as profiles: the one place that knows both sides."""

    def __init__(self, settings: Settings, protocols: frozenset[str], cache: Path) -> None:
        """`cache`: the hub's. Raises CatalogError."""
        self._settings = settings
        self._protocols = protocols
        self._cache = cache
        self._file = CatalogFile(settings.models_file, self._check)
        self._discovery = Discovery([], [])
        self._names: frozenset[str] = frozenset()  # and aliases, of all models

    def profiles(self) -> list[ModelProfile]:
        """The catalog's models, and those found on disk whose names it doesn't use."""
        catalog = self._file.current
        self._discovery = look_for_models(self._settings.model_dirs, self._cache)
        on_disk = {found.name: found for found in self._discovery.models}
        profiles = {
            name: _with_files(self._profile(name, entry), _files_of(entry, on_disk))
            for name, entry in catalog.models.items()
        }
        taken = profiles.keys() | {alias for profile in profiles.values() for alias in profile.aliases}
        for found in self._discovery.models:
            if found.name not in taken:
                profile = self._profile(found.name, catalog.found_entry(found.path))
                profiles[found.name] = replace(_with_files(profile, found), source=ModelSource.DISCOVERED)
        self._names = frozenset(taken | profiles.keys())
        return list(profiles.values())

    def found(self) -> Iterator[Remark]:
        """What the operator should know of settings, folders and the catalog's paths, as last looked at."""
        settings = self._settings
        yield from remarks_on(settings)
        yield from self._discovery.remarks
        default = settings.default_model
        if "default_model" in settings.model_fields_set and not self._is_here(default):
            yield Remark(f"DEFAULT_MODEL={default}: no model here has this name; it would be the hub's")
        for name, entry in self._file.current.models.items():
            folder = None if entry.engine == "command" else entry.path
            if folder is not None and folder.is_dir() and (problem := config_problem(folder)) is not None:
                yield Remark(f"model {name}: {folder}: {problem}", is_mistake=True)

    def _is_here(self, name: str) -> bool:
        return name in self._names or expand_home(name).is_dir()

    def remarks(self) -> list[str]:
        return [one_line(remark.text) for remark in self.found()]

    def preview(self, name: str, changes: Mapping[str, Any]) -> ModelProfile:
        """Raises InvalidCatalog."""
        try:
            catalog = preview_edit(self._settings.models_file, name, changes)
        except CatalogError as error:
            raise InvalidCatalog(str(error)) from error
        return self._profile(name, catalog.models[name])

    def reload(self, *, only_if_changed: bool) -> bool:
        """Raises InvalidCatalog, and then the old one stays."""
        try:
            if only_if_changed:
                return self._file.reload_if_changed() is not None
            self._file.reload()
        except CatalogError as error:
            raise InvalidCatalog("; ".join(error.lines)) from error
        return True

    def edit(self, name: str, changes: Mapping[str, Any]) -> None:
        """Raises InvalidCatalog."""
        try:
            edit_model(self._settings.models_file, name, changes)
        except CatalogError as error:
            raise InvalidCatalog(str(error)) from error

    def _profile(self, name: str, entry: ModelEntry) -> ModelProfile:
        default_engine = (
            "engine" if self._settings.default_engine == "auto" else self._settings.default_engine
        )
        return ModelProfile(
            name=name,
            model=str(entry.path) if entry.path is not None else (entry.model or name),
            engine=default_engine if entry.engine in (None, "auto") else entry.engine,
            params=entry.engine_params(),
            aliases=tuple(entry.aliases),
            devices=entry.devices,
            timeout_s=entry.timeout,
            expire_action=None if entry.expire_action is None else ExpireAction(entry.expire_action),
            min_replicas=entry.min_replicas,
            max_replicas=entry.max_replicas,
            pinned=entry.pinned,
            concurrency_limit=entry.concurrency_limit,
            env=entry.env,
            command=entry.command,
            health_path=entry.health_path,
            protocol=entry.protocol,
            set_params=entry.filters.set_params,
            strip_params=frozenset(entry.filters.strip_params),
            preload=entry.preload,
        )

    def _check(self, catalog: Catalog) -> None:
        for name, entry in catalog.models.items():
            if entry.protocol is not None and entry.protocol not in self._protocols:
                known = ", ".join(sorted(self._protocols))
                raise CatalogError(
                    self._settings.models_file,
                    f"there is no such protocol; known are {known}",
                    keys=("models", name, "protocol"),
                    value=entry.protocol,
                )


def _files_of(entry: ModelEntry, on_disk: Mapping[str, FoundModel]) -> FoundModel | None:
    """What an entry's engine would load, where it lies here already; `on_disk` by name."""
    if entry.path is not None:
        return files_at(entry.path)
    return None if entry.engine == "command" else on_disk.get(entry.target)


def _with_files(profile: ModelProfile, found: FoundModel | None) -> ModelProfile:
    return (
        profile if found is None else replace(profile, size_bytes=found.size_bytes, modified=found.modified)
    )


def manager_config(settings: Settings, env_file: Path | None = None) -> ManagerConfig:
    """The manager's policy, as the settings have it."""
    return ManagerConfig(
        base_port=settings.vllm_base_port,
        max_instances=settings.vllm_max_instances,
        default_engine="engine" if settings.default_engine == "auto" else settings.default_engine,
        default_model=settings.default_model,
        default_timeout_s=settings.vllm_default_timeout,
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
        state_url=_state_url(settings),
        advertise_url=_advertised(settings),
        on_shutdown=OnShutdown(settings.on_shutdown),
        vllm_python=settings.vllm_python,
        model_dirs=settings.model_dirs,
        default_params=settings.parameters(),
        engine_params={"unknown_fields": settings.unknown_fields},
        vllm_params={"trust_remote_code": True} if settings.vllm_default_trust_remote_code else {},
        engine_env=settings.engine_environment(env_file),
    )


def _advertised(settings: Settings) -> str:
    """Where other Berths reach this one; empty where the port is the system's choice."""
    if settings.advertise_url or not settings.app_port:
        return settings.advertise_url or ""
    host = settings.app_host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - every address is none to name
        host = socket.gethostname()
    return f"http://[{host}]:{settings.app_port}" if ":" in host else f"http://{host}:{settings.app_port}"


def _state_url(settings: Settings) -> str:
    """Raises SettingsError."""
    try:
        check_url(settings.state_url)
    except InvalidStateUrl as error:
        raise SettingsError(str(error)) from None
    return settings.state_url


class BerthServer(uvicorn.Server):
    """uvicorn, except that manager and pulls hear of a shutdown first, and that a clean end is status 0."""

    def __init__(self, config: uvicorn.Config, manager: InstanceManager, pulls: Pulls) -> None:
        super().__init__(config)
        self._manager = manager
        self._pulls = pulls
        self._loop: asyncio.AbstractEventLoop | None = None
        self.has_broken_down = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises OSError where the port is taken, and StoreError where the state can't be opened."""
        sockets = sockets or bind(self.config.host, self.config.port)
        try:
            await self._manager.prepare()
        except BaseException:
            for one in sockets:
                one.close()
            raise
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        garbage.settle()

    async def on_tick(self, counter: int) -> bool:
        """A manager that has ended by itself takes the server with it: whoever runs Berth starts it anew."""
        should_exit = await super().on_tick(counter)
        self.has_broken_down = not should_exit and self._manager.is_shutting_down
        return should_exit or self.has_broken_down

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Connections close once what they wait for or follow has ended, so that comes first.
        self._manager.begin_shutdown()
        self._pulls.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the shutdown; a second one lets requests in flight have no more time."""
        if self.should_exit and self._loop is not None:
            hurry = partial(self._manager.begin_shutdown, drain_timeout_s=0)
            self._loop.call_soon_threadsafe(hurry)
        self.should_exit = True


def create_server(
    settings: Settings, env_file: Path | None = None, traces: TraceExport | None = None
) -> BerthServer:
    """The HTTP server around the application; header rules are the data plane's, so uvicorn adds none."""
    app, manager, pulls = _compose(settings, env_file)
    if traces is not None:
        app = Tracing(app, traces.tracer)
        manager.events.add_listener(InstanceSpans(traces.tracer).on_event)
    limits = ConnectionLimits(
        max_connections=connections_within(raise_descriptor_limit(), settings.max_connections),
        max_body_bytes=settings.max_body_mb * 2**20,
    )
    config = uvicorn.Config(
        app,
        host=settings.app_host,
        port=settings.app_port,
        loop="auto",
        http=cast(
            type[asyncio.Protocol], partial(GuardedHttpProtocol, limits=limits, origins=_origins(settings))
        ),
        ws=GuardedWebSocket,
        access_log=False,
        proxy_headers=False,  # who is in front of us is told by the peer's address alone
        server_header=False,
        date_header=False,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    return BerthServer(config, manager, pulls)


class Telemetry:
    """What Berth sends elsewhere: traces and copies of log lines. None of it is needed to serve."""

    def __init__(self, settings: Settings) -> None:
        self.traces: TraceExport | None = None
        self._logs: list[RemoteLogs] = []
        if settings.log_syslog is not None:
            self._logs.append(send_to_syslog(settings.log_syslog))
        if (endpoint := settings.otel_exporter_otlp_endpoint) is not None:
            name = settings.otel_service_name
            try:
                if settings.log_otlp:
                    self._logs.append(send_to_otlp(endpoint, name, VERSION))
                self.traces = TraceExport(endpoint, name, VERSION)
            except ImportError as error:
                logger.error(
                    "OTEL_EXPORTER_OTLP_ENDPOINT is set, but there is no %s: nothing is sent there. "
                    "Install it: pip install -r requirements.txt",
                    error.name,
                )

    def close(self) -> None:
        """Send what is left, all at once; takes three seconds where nobody answers."""
        finishes: list[Callable[[], None]] = [handler.finish for handler in self._logs]
        if self.traces is not None:
            finishes.append(self.traces.close)
        threads = [threading.Thread(target=finish) for finish in finishes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; the exit status is 0, 1 (could not serve) or 2 (a setting is wrong)."""
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # what it warns of is told by its line
    try:
        flags = parse_flags(argv, VERSION)
    except FlagError as error:
        return _refuse([str(error)])
    loaded = read_settings(ENV_FILE, flags.given)
    if flags.check:
        report = check(loaded)
        sys.stdout.write((report.as_json() if flags.as_json else report.as_text()) + "\n")
        return report.exit_status
    if loaded.mistakes:
        return _refuse(all_mistakes(loaded))
    try:
        _begin_logging(loaded)
        telemetry = Telemetry(loaded.settings)
        server = create_server(loaded.settings, ENV_FILE, telemetry.traces)
    except (SettingsError, CatalogError, PluginError) as error:
        return _refuse(all_mistakes(loaded) or [str(error)])  # with whatever else is wrong
    return _serve(loaded.settings, server, telemetry)


def _serve(settings: Settings, server: BerthServer, telemetry: Telemetry) -> int:
    logger.info("Berth %s on http://%s:%s", VERSION, settings.app_host, settings.app_port)
    try:
        server.run()
    except StoreError as error:
        sys.stderr.write(f"berth: {error}\n")
        return 2 if isinstance(error, InvalidStateUrl) else 1
    except OSError as error:
        address = f"APP_HOST={settings.app_host} APP_PORT={settings.app_port}"
        sys.stderr.write(f"berth: {address}: can't listen there: {error.strerror or error}\n")
        return 1
    finally:
        telemetry.close()
    return 1 if server.has_broken_down else 0


def _begin_logging(loaded: Loaded) -> None:
    """Raises SettingsError."""
    settings = loaded.settings
    try:
        configure_logging(
            settings.log_format,
            level=settings.log_level,
            debug=settings.app_debug,
            access_log=settings.access_log,
            file=settings.log_file,
        )
    except OSError as error:
        raise SettingsError(f"LOG_FILE={settings.log_file}: {error.strerror or error}") from None
    for name, value in settings.sdk_environment(ENV_FILE).items():
        os.environ.setdefault(name, value)
    for remark in loaded.remarks:
        logger.warning("%s", remark)
    for note in loaded.notes:
        logger.info("%s", note)


def _refuse(mistakes: Sequence[str]) -> int:
    for line in mistakes:
        sys.stderr.write(f"berth: {line}\n")
    return 2


def all_mistakes(loaded: Loaded) -> list[str]:
    """Everything that keeps Berth from starting."""
    settings = loaded.settings
    mistakes = list(loaded.mistakes)
    for attempt in (
        lambda: api_keys(settings),
        lambda: _state_url(settings),
        lambda: load_protocols(settings.protocol_plugins),
        lambda: load_catalog(settings.models_file),
        lambda: _catalog_profiles(settings, manager_config(settings, ENV_FILE)),
    ):
        try:
            attempt()
        except CatalogError as error:
            mistakes += error.lines
        except (SettingsError, PluginError) as error:
            mistakes += str(error).splitlines()
    return list(dict.fromkeys(mistakes))  # the last of the attempts takes the two before it up again


def check(loaded: Loaded) -> Report:
    """All that a start would refuse or tell of, without one."""
    report, settings = Report(all_mistakes(loaded), [*loaded.remarks, *loaded.notes]), loaded.settings
    try:
        config = manager_config(settings, ENV_FILE)
        source = _catalog_profiles(settings, config)
    except (SettingsError, CatalogError, PluginError):
        return report  # what would follow from it is no news
    profiles = source.profiles()
    gpus = GpuDriver(os.environ).list_gpus() if any(one.devices for one in profiles) else ()
    problems = {one.name: problem_of(one, config, gpus) for one in profiles}
    told = told_together({name: problem for name, problem in problems.items() if problem is not None})
    report.add([*source.found(), *(Remark(line, is_mistake=True) for line in told)])
    report.num_models = len(profiles)
    return report


def _catalog_profiles(settings: Settings, config: ManagerConfig) -> CatalogProfiles:
    """Raises PluginError and CatalogError."""
    adapters = load_protocols(settings.protocol_plugins)
    return CatalogProfiles(settings, frozenset(adapter.name for adapter in adapters), _hub_cache(config))


def _hub_cache(config: ManagerConfig) -> Path:
    """Where engines keep what they have downloaded, but for models whose `env` says otherwise."""
    return hub_cache(child_environment(os.environ, config.engine_env))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
