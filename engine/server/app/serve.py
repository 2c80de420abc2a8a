"""The server's lifecycle: listen, load, serve, drain, stop. Knows nothing of command lines and signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.config import ServerConfig
from engine.core.async_engine import AsyncEngine
from engine.pooling.engine import PoolingEngine
from engine.server.app.generation_app import create_app
from engine.server.app.middleware import RequestMiddleware
from engine.server.app.pooling_app import create_pooling_app
from engine.server.generation.service import GenerationService
from engine.server.http.http_1_0 import Http10Protocol
from engine.server.http.listener import BACKLOG
from engine.server.http.request_log import log_throughput
from engine.server.model.model_service import ModelService
from engine.server.model.served_model import ServedModel, load_served_model
from engine.server.pooling.service import PoolingService
from engine.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75  # longer than any client's pool keeps an idle connection
_ABORT_S = 2.0  # for the current step to end and error events to be sent
_CLOSE_S = 2.0  # for connections to close


@dataclass(frozen=True, slots=True)
class Loading:
    """What is still loading while the server already listens."""

    engine: AsyncEngine | PoolingEngine
    started: asyncio.Task[None]  # engine.start()
    tokenizer: Future[Tokenizer]
    directory: Path  # the checkpoint's


async def serve(
    loading: Loading,
    listener: socket.socket,
    config: ServerConfig,
    *,
    max_num_seqs: int,
    stop: asyncio.Event,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until `stop` is set, then let running requests finish.

    Raises what loading raises, and EngineDead if the engine stops by itself.
    """
    service, middleware = _make_app(loading.engine, config, max_num_seqs)
    server = _Server(_uvicorn_config(middleware, config))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    engine_task = asyncio.create_task(_load_and_watch(service, loading, on_ready))
    try:
        await asyncio.wait([serving, stopping, engine_task], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            (engine_task if engine_task.done() else serving).result()  # raises its error
        await _drain(service, middleware)
        if not middleware.is_idle:
            _close_stalled_connections(server)
    finally:
        service.draining = True
        server.should_exit = True
        engine_task.cancel()
        stopping.cancel()
        await asyncio.wait([serving], timeout=_CLOSE_S + 1)


def _make_app(
    engine: AsyncEngine | PoolingEngine, config: ServerConfig, max_num_seqs: int
) -> tuple[ModelService, RequestMiddleware]:
    """The service and app for the engine's runner."""
    if isinstance(engine, PoolingEngine):
        pooling = PoolingService(engine, config, max_num_seqs=max_num_seqs)
        return pooling, create_pooling_app(pooling)
    service = GenerationService(engine, config, max_num_seqs=max_num_seqs)
    return service, create_app(service)


async def _load_and_watch(service: ModelService, loading: Loading, on_ready: Callable[[], None]) -> None:
    """Returns when the engine stops; raises its error."""
    # The first failure is reported at once: an invalid tokenizer does not wait for the weights.
    _, model = await asyncio.gather(loading.started, _load_model(service.config, loading))
    if isinstance(service, GenerationService):
        await service.load_first_adapters(model)
    service.serve(model)
    on_ready()
    async with _throughput_log(service):
        await service.engine.wait_ended()


@contextlib.asynccontextmanager
async def _throughput_log(service: ModelService) -> AsyncIterator[None]:
    if not service.config.log_stats:
        yield
        return
    generates = not isinstance(service.engine, PoolingEngine)
    logging_task = asyncio.create_task(log_throughput(service.engine.stats, generates=generates))
    try:
        yield
    finally:
        logging_task.cancel()


async def _load_model(config: ServerConfig, loading: Loading) -> ServedModel:
    tokenizer = await asyncio.wrap_future(loading.tokenizer)
    return await asyncio.to_thread(load_served_model, loading.directory, config, tokenizer)


async def _drain(service: ModelService, middleware: RequestMiddleware) -> None:
    """Refuse new requests, wait for running ones until the timeout, then abort the rest with an error.

    Does not wait for an engine that is still loading.
    """
    service.draining = True
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(middleware.wait_idle(), service.config.shutdown_timeout_s)
    if not service.engine.is_alive:
        return
    await service.engine.shutdown(_ABORT_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(middleware.wait_idle(), _ABORT_S)


def _close_stalled_connections(server: uvicorn.Server) -> None:
    """Close connections whose clients have stopped reading: their responses would never end."""
    for connection in list(server.server_state.connections):
        if isinstance(connection, HttpToolsProtocol) and connection.flow.write_paused:
            connection.transport.abort()


class _Server(uvicorn.Server):
    """Leaves signals to the caller: uvicorn would end the process by the signal, not with an exit code."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: RequestMiddleware, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Http10Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=config.access_log,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(_CLOSE_S),
        backlog=BACKLOG,
    )
