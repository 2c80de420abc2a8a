"""The HTTP server around the application, its start and its shutdown."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from api.http.route import RoutedApp
from api.server import garbage
from api.server.descriptors import connections_within, raise_descriptor_limit
from api.server.guarded_ws import GuardedWebSocket
from api.server.limits import ConnectionLimits
from api.server.listening import bind
from api.server.protocol import HttpServer
from api.telemetry.trace_export import InstanceSpans, TraceExport
from api.telemetry.tracing import Tracing
from composition.application import compose
from composition.policies import origins_of
from configs.settings import Settings
from instance_manager.hub.pull import Pulls
from instance_manager.manager import InstanceManager


class CantListen(OSError):
    """A port is taken, for instance; `setting` names it."""

    def __init__(self, setting: str, port: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause))
        self.setting = setting
        self.port = port


def _bind_all(host: str, ports: dict[str, int]) -> list[socket.socket]:
    """The sockets of all ports, by their setting. Raises CantListen."""
    bound: list[socket.socket] = []
    for setting, port in ports.items():
        try:
            bound += bind(host, port)
        except OSError as error:
            for listener in bound:
                listener.close()
            raise CantListen(setting, port, error) from None
    return bound


class BerthServer(uvicorn.Server):
    """uvicorn, but a shutdown notifies manager and downloads first, and a clean end has exit status 0."""

    def __init__(
        self, config: uvicorn.Config, manager: InstanceManager, pulls: Pulls, ollama_port: int = 0
    ) -> None:
        """`ollama_port`: a second one, for Ollama's clients; 0 = none."""
        super().__init__(config)
        self._ollama_port = ollama_port
        self._manager = manager
        self._pulls = pulls
        self._loop: asyncio.AbstractEventLoop | None = None
        self.has_broken_down = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises CantListen if a port is taken, and StoreError if the state can't be opened."""
        ports = {"APP_PORT": self.config.port}
        if self._ollama_port:
            ports["OLLAMA_PORT"] = self._ollama_port
        sockets = sockets or _bind_all(self.config.host, ports)
        try:
            await self._manager.prepare()
        except BaseException:
            for listener in sockets:
                listener.close()
            raise
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        garbage.settle()

    async def on_tick(self, counter: int) -> bool:
        """If the manager has ended by itself, so does the server: a service manager will restart Berth."""
        should_exit = await super().on_tick(counter)
        self.has_broken_down = not should_exit and self._manager.is_shutting_down
        return should_exit or self.has_broken_down

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Connections close once the requests and streams on them have ended, so those end first.
        self._manager.begin_shutdown()
        self._pulls.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the shutdown; a second one cuts off requests in flight."""
        if self.should_exit and self._loop is not None:
            hurry = partial(self._manager.begin_shutdown, drain_timeout_s=0)
            self._loop.call_soon_threadsafe(hurry)
        self.should_exit = True


def create_server(
    settings: Settings, env_file: Path | None = None, traces: TraceExport | None = None
) -> BerthServer:
    """The HTTP server around the application; header rules are the data plane's, so uvicorn adds none."""
    parts = compose(settings, env_file)
    app: RoutedApp = parts.app
    if traces is not None:
        app = Tracing(app, traces.tracer)
        parts.manager.events.add_listener(InstanceSpans(traces.tracer).on_event)
    limits = ConnectionLimits(
        max_connections=connections_within(raise_descriptor_limit(), settings.max_connections),
        max_body_bytes=settings.max_body_mb * 2**20,
    )
    config = uvicorn.Config(
        app,
        host=settings.app_host,
        port=settings.app_port,
        loop="auto",
        http=HttpServer(limits, origins_of(settings)).protocol(),
        ws=GuardedWebSocket,
        access_log=False,
        proxy_headers=False,  # only the peer's address identifies a proxy in front of us
        server_header=False,
        date_header=False,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    return BerthServer(config, parts.manager, parts.pulls, settings.ollama_port)
