"""The server's life: listen, load, serve, drain, end. Knows nothing of the command line or of signals."""

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
_ABORT_S = 2.0  # for a step to end and error events to go out
_CLOSE_S = 2.0  # for connections to close


@dataclass(frozen=True, slots=True)
class Loading:
    """What is being loaded while the server already listens."""

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
    """Serve until `stop` is set, then let running requests end.

    Raises what loading raises, and EngineDead if the engine ends of itself.
    """
    service, gate = _open(loading.engine, config, max_num_seqs)
    server = _Server(_uvicorn_config(gate, config))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    life = asyncio.create_task(_load_and_watch(service, loading, on_ready))
    try:
        await asyncio.wait([serving, stopping, life], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            (life if life.done() else serving).result()  # raises what ended it
        await _drain(service, gate)
        if not gate.is_empty:
            _cut(server)
    finally:
        service.draining = True
        server.should_exit = True
        life.cancel()
        stopping.cancel()
        await asyncio.wait([serving], timeout=_CLOSE_S + 1)


def _open(
    engine: AsyncEngine | PoolingEngine, config: ServerConfig, max_num_seqs: int
) -> tuple[ModelService, RequestMiddleware]:
    """The routes that fit what the engine does."""
    if isinstance(engine, PoolingEngine):
        pooling = PoolingService(engine, config, max_num_seqs=max_num_seqs)
        return pooling, create_pooling_app(pooling)
    service = GenerationService(engine, config, max_num_seqs=max_num_seqs)
    return service, create_app(service)


async def _load_and_watch(service: ModelService, loading: Loading, on_ready: Callable[[], None]) -> None:
    """Until the engine ends; raises what ended it."""
    # Whichever fails first is the news: a wrong tokenizer needn't wait for the weights.
    _, model = await asyncio.gather(loading.started, _load_model(service.config, loading))
    service.serve(model)
    on_ready()
    async with _telling_of_throughput(service):
        await service.engine.wait_ended()


@contextlib.asynccontextmanager
async def _telling_of_throughput(service: ModelService) -> AsyncIterator[None]:
    if not service.config.log_stats:
        yield
        return
    generates = not isinstance(service.engine, PoolingEngine)
    telling = asyncio.create_task(log_throughput(service.engine.stats, generates=generates))
    try:
        yield
    finally:
        telling.cancel()


async def _load_model(config: ServerConfig, loading: Loading) -> ServedModel:
    tokenizer = await asyncio.wrap_future(loading.tokenizer)
    return await asyncio.to_thread(load_served_model, loading.directory, config, tokenizer)


async def _drain(service: ModelService, gate: RequestMiddleware) -> None:
    """No new requests; running ones may end in time; what is left is aborted and told so.

    An engine that still loads isn't waited for.
    """
    service.draining = True
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gate.wait_empty(), service.config.shutdown_timeout_s)
    if not service.engine.is_alive:
        return
    await service.engine.shutdown(_ABORT_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gate.wait_empty(), _ABORT_S)


def _cut(server: uvicorn.Server) -> None:
    """Close the connections whose clients don't read: what is sent to them would never end."""
    for connection in list(server.server_state.connections):
        if isinstance(connection, HttpToolsProtocol) and connection.flow.write_paused:
            connection.transport.abort()


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it: uvicorn's way ends the process by the signal, not with a code."""

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
