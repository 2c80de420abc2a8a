"""The composition root: reads the settings, builds the parts, hands each its policy, and serves.

`create_app(settings)` gives the ASGI application; `python app.py` serves it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from api.auth import AccessControl, Keys
from api.control import create_control_app
from api.dispatch import Dispatcher
from api.fast_http import FastHttpProtocol
from api.proxy import DataPlane
from configs.logging import configure_logging
from configs.settings import Settings, SettingsError, load_settings
from instance_manager.manager import InstanceManager
from instance_manager.metrics import ProxyMetrics
from instance_manager.pull import Pulls
from instance_manager.types import Event, InstanceState, ManagerConfig

VERSION = "0.1.0"
ENV_FILE = Path(".env")

logger = logging.getLogger("berth")


def create_app(settings: Settings, env_file: Path | None = None) -> AccessControl:
    """The whole of Berth as one ASGI application; its lifespan owns the engines."""
    return _compose(settings, env_file)[0]


def _compose(settings: Settings, env_file: Path | None) -> tuple[AccessControl, InstanceManager, Pulls]:
    metrics = ProxyMetrics()
    manager = InstanceManager(manager_config(settings, env_file))
    pulls = Pulls(manager.config.engine_env)
    data_plane = DataPlane(manager, metrics)

    def let_go(event: Event) -> None:
        if event.type == "instance.deleted":
            metrics.forget(event.instance_id)
        elif event.type == "instance.state" and event.data["previous"] == InstanceState.RUNNING:
            data_plane.forget(event.instance_id)

    manager.events.add_listener(let_go)
    control = create_control_app(manager, pulls, metrics, version=VERSION)
    keys = Keys(inference=settings.api_keys, admin=settings.admin_api_keys)
    return AccessControl(Dispatcher(control, data_plane), keys), manager, pulls


def manager_config(settings: Settings, env_file: Path | None = None) -> ManagerConfig:
    """The manager's policy, as the settings have it."""
    return ManagerConfig(
        base_port=settings.vllm_base_port,
        max_instances=settings.vllm_max_instances,
        default_engine="engine" if settings.default_engine == "auto" else settings.default_engine,
        default_model=settings.default_model,
        default_timeout_s=settings.vllm_default_timeout,
        start_timeout_s=settings.start_timeout,
        start_timeout_cap_s=max(3600.0, settings.start_timeout),
        stop_grace_s=settings.stop_grace,
        drain_timeout_s=settings.drain_timeout,
        max_queue=settings.max_queue,
        max_in_flight=settings.max_in_flight,
        log_dir=settings.log_dir,
        vllm_python=settings.vllm_python,
        model_dirs=settings.model_dirs,
        default_params=settings.parameters(),
        vllm_params={"trust_remote_code": True} if settings.vllm_default_trust_remote_code else {},
        engine_env=settings.engine_environment(env_file),
    )


class BerthServer(uvicorn.Server):
    """uvicorn, except that manager and pulls hear of a shutdown first, and that a clean end is status 0."""

    def __init__(self, config: uvicorn.Config, manager: InstanceManager, pulls: Pulls) -> None:
        super().__init__(config)
        self._manager = manager
        self._pulls = pulls
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

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


def create_server(settings: Settings, env_file: Path | None = None) -> BerthServer:
    """The HTTP server around the application; header rules are the data plane's, so uvicorn adds none."""
    app, manager, pulls = _compose(settings, env_file)
    config = uvicorn.Config(
        app,
        host=settings.app_host,
        port=settings.app_port,
        loop="auto",
        http=FastHttpProtocol,
        ws="websockets-sansio",
        access_log=False,
        proxy_headers=False,  # who is in front of us is told by the peer's address alone
        server_header=False,
        date_header=False,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    return BerthServer(config, manager, pulls)


def main() -> int:
    """Serve until told to stop; the exit status is 0, 1 (could not serve) or 2 (a setting is wrong)."""
    try:
        settings = load_settings(ENV_FILE)
    except SettingsError as error:
        sys.stderr.write(f"berth: {error}\n")
        return 2
    configure_logging(settings.log_format, debug=settings.app_debug)
    logger.info("Berth %s on http://%s:%s", VERSION, settings.app_host, settings.app_port)
    create_server(settings, ENV_FILE).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
