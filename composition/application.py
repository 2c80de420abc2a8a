"""Assembles the parts of Berth into one ASGI application."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from api.access.engine_routes import RequestRoutes
from api.access.key_store import KeyStore
from api.access.ollama_routes import FOR_REQUESTS
from api.auth import AccessControl
from api.control import read_paths, usage_report
from api.control.app import create_control_app
from api.control.catalog import ModelFiles
from api.control.metrics_page import MetricsPage
from api.control.ollama.state import OllamaState
from api.cors import Cors
from api.gateway.engine_paths import UNVERSIONED
from api.gateway.gateway import Gateway
from api.gateway.model_loads import ModelLoads
from api.gateway.model_routes import ModelRoutes
from api.gateway.response_cache import ResponseCache
from api.gateway.stored_responses import StoredResponses
from api.gateway.translation import Dialects
from api.gateway.upstream_routes import UpstreamRoutes
from api.http.dispatch import Dispatcher
from api.http.route import RoutedApp
from api.protocols.app import ProtocolApp
from api.protocols.ollama import ollama_adapters
from api.protocols.registry import dialect_adapters, load_protocols
from api.protocols.responses.store import ResponseStore
from api.proxy.peer_routes import PeerRoutes
from api.proxy.proxy import DataPlane
from api.server.content_coding import DecodingApp
from composition.catalog_profiles import CatalogProfiles, hub_cache_of
from composition.policies import api_keys, manager_config, origins_of, pace_rules, read_keys
from composition.version import VERSION
from configs.settings import Settings
from configs.watched_file import WatchedFile
from instance_manager.errors import InstanceNotFound
from instance_manager.fleet.fleet import Fleet, FleetConfig
from instance_manager.fleet.memory_planner import MemoryPlanner, MemoryPlannerConfig
from instance_manager.hub.pull import Pulls
from instance_manager.manager import InstanceManager
from instance_manager.memory.eviction import EvictionPolicy
from instance_manager.memory.gpu import GpuDriver
from instance_manager.memory.measurements import Measurements
from instance_manager.metrics.lifecycle import LifecycleMetrics
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.metrics.state import model_label
from instance_manager.types import Event, InstanceState


@dataclass(frozen=True, slots=True)
class Application:
    """The assembled Berth. `app` serves; its lifespan owns the engines."""

    app: RoutedApp
    manager: InstanceManager
    pulls: Pulls


def create_app(settings: Settings, env_file: Path | None = None) -> RoutedApp:
    """The whole of Berth as one ASGI application; its lifespan owns the engines."""
    return compose(settings, env_file).app


def compose(settings: Settings, env_file: Path | None) -> Application:
    """Raises SettingsError, CatalogError and PluginError."""
    manager = InstanceManager(manager_config(settings, env_file))
    adapters = load_protocols(settings.protocol_plugins)
    driver = GpuDriver(os.environ)
    fleet = _fleet(settings, manager, driver)
    names = frozenset(adapter.name for adapter in adapters)
    source = CatalogProfiles(settings, names, hub_cache_of(manager.config), driver.list_gpus)
    key_file = None if settings.api_keys_file is None else WatchedFile(settings.api_keys_file)
    keys = KeyStore(api_keys(settings), key_file, partial(read_keys, settings))
    models = ModelFiles(fleet, source, driver.list_gpus, keys)
    pulls = Pulls(manager.config.engine_env)
    metrics, lifecycle = _metrics(manager)
    peer_routes = PeerRoutes(
        manager.peers, metrics, lambda: manager.state.session.owner, manager.check_accepts_requests
    )
    data_plane = DataPlane(
        manager, metrics, peer_routes=peer_routes, sleep=manager, pace=pace_rules(settings)
    )
    manager.events.add_listener(partial(_forget_ended, data_plane, metrics))
    manager.events.add_listener(lifecycle.on_event)
    responses = ResponseStore()
    gateway = Gateway(
        fleet,
        data_plane,
        comment_interval_s=settings.stream_keepalive,
        peer_routes=peer_routes,
        dialects=Dialects(dialect_adapters(responses)),
        responses=StoredResponses(responses, metrics.unserved.count),
        has_loading_text=settings.loading_text,
    )
    cache = None
    if settings.response_cache_mb:
        cache = ResponseCache(gateway, settings.response_cache_mb * 2**20, fleet.identity_of)
    ollama = OllamaState.of(fleet, settings.ollama_port)
    protocols = ProtocolApp(
        cache or gateway,
        (*adapters, *ollama_adapters(ollama.models)),
        protocol_of=fleet.protocol_of,
        default_model=settings.default_model,
        loads=ModelLoads(gateway, data_plane),
    )
    translated = sorted(route.decode() for route in protocols.routes)
    page = MetricsPage(fleet, metrics, lifecycle, driver, version=VERSION, cache=cache)
    control = create_control_app(
        manager, fleet, models, pulls, page, version=VERSION, translated=translated, ollama=ollama
    )
    door = DecodingApp(protocols, settings.max_body_mb * 2**20, metrics.unserved.count)
    routes = ModelRoutes(gateway, door, protocols.routes, has_fast_path=cache is None)
    request_routes = RequestRoutes(settings.request_paths)
    by_name = UpstreamRoutes(fleet, data_plane, request_routes, peer_routes)
    dispatcher = Dispatcher(control, data_plane, routes, by_name)
    origins = origins_of(settings)
    access = AccessControl(
        dispatcher,
        keys,
        inference_paths=frozenset(UNVERSIONED) | protocols.routes | FOR_REQUESTS | {usage_report.PATH},
        read_paths=read_paths.READ_PATHS,
        names_served_by=partial(_names_served_by, fleet),
        on_refused=metrics.unserved.count,
        origins=origins,
        request_routes=request_routes,
    )
    return Application(Cors(access, origins) if origins else access, manager, pulls)


def _metrics(manager: InstanceManager) -> tuple[ProxyMetrics, LifecycleMetrics]:
    def model_of(instance_id: str) -> str | None:
        try:
            return model_label(manager.get(instance_id))
        except InstanceNotFound:
            return None

    return ProxyMetrics(model_of, manager.usage.add), LifecycleMetrics(model_of)


def _forget_ended(data_plane: DataPlane, metrics: ProxyMetrics, event: Event) -> None:
    if event.type == "instance.deleted":
        metrics.forget(event.instance_id)
    elif event.type == "instance.state" and event.data["previous"] == InstanceState.RUNNING:
        data_plane.forget(event.instance_id)


def _names_served_by(fleet: Fleet, instance_id: str) -> tuple[str, ...]:
    """The names of an instance's model; none for an unknown instance."""
    return fleet.names_of_instance(instance_id) or fleet.manager.peers.names_of(instance_id)


def _fleet(settings: Settings, manager: InstanceManager, driver: GpuDriver) -> Fleet:
    host_bytes = int(settings.host_memory * 2**30) if settings.host_memory > 1 else None
    config = MemoryPlannerConfig(
        host_fraction=min(1.0, settings.host_memory),
        host_bytes=host_bytes,
        policy=EvictionPolicy(min_residency_s=settings.min_residency, max_wait_s=settings.max_wait),
    )
    planner = MemoryPlanner(manager, config, Measurements(settings.state_dir), driver)
    return Fleet(manager, FleetConfig(autostart=settings.autostart, max_queue=settings.max_queue), planner)
