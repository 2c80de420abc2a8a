"""The faults of a storm: engines, clients, Berth and Redis are killed, frozen or sent noise."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import psutil

from tests.soak.deployment import Deployment
from tests.soak.history import Impact

_FROZEN_S = (0.1, 3.0)
_AWAY_S = (0.2, 4.0)
_NOISE_TIMEOUT_S = 15.0
_SECONDS_TO_TAKE_EFFECT = 0.2

Action = Callable[["FaultContext", random.Random], Awaitable[None]]


class FaultContext:
    """The targets of faults: the deployment, an operator's client, and each engine's model."""

    def __init__(self, deployment: Deployment, http: httpx.AsyncClient, models: list[str]) -> None:
        self.deployment = deployment
        self.history = deployment.history
        self.http = http
        self.models = models
        self.model_of: dict[str, str] = {}  # by instance, including deleted ones
        self._model_of_pid: dict[int, str] = {}

    async def engine(self, rng: random.Random) -> tuple[int, str | None] | None:
        """The pid and model of a live engine; works while Berth is down."""
        await self.refresh()
        pids = [pid for pid in sorted(self._model_of_pid) if self.deployment.is_ours(pid)]
        if not pids:
            return None
        pid = rng.choice(pids)
        return pid, self._model_of_pid[pid]

    async def refresh(self) -> None:
        """Update the known instances, if Berth answers."""
        with suppress(httpx.HTTPError, KeyError, ValueError):
            for one in (await self.http.get("/instances")).json()["data"]:
                model = self.model_of[one["instance_id"]] = one["profile"] or one["instance_id"]
                if one["pid"] is not None:
                    self._model_of_pid[one["pid"]] = model


async def kill_an_engine(context: FaultContext, rng: random.Random) -> None:
    if (found := await context.engine(rng)) is not None:
        with context.history.during("engine killed", Impact.ENGINE, found[1]):
            _kill(found[0])
            await asyncio.sleep(_SECONDS_TO_TAKE_EFFECT)


async def kill_a_shim(context: FaultContext, rng: random.Random) -> None:
    if (found := await context.engine(rng)) is None:
        return
    with suppress(psutil.Error):
        shim = psutil.Process(found[0]).parent()
        if shim is not None and any("shim" in part for part in shim.cmdline()):
            with context.history.during("shim killed", Impact.ENGINE, found[1]):
                _kill(shim.pid)
                await asyncio.sleep(_SECONDS_TO_TAKE_EFFECT)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def freeze_an_engine(context: FaultContext, rng: random.Random) -> None:
    if (found := await context.engine(rng)) is None:
        return
    with context.history.during("engine frozen"), suppress(ProcessLookupError):
        os.kill(found[0], signal.SIGSTOP)
        try:
            await asyncio.sleep(rng.uniform(*_FROZEN_S))
        finally:
            os.kill(found[0], signal.SIGCONT)


async def write_noise(context: FaultContext, rng: random.Random) -> None:
    noise = rng.choice((b"", b"POST /v1/completions HTTP/1.1\r\n")) + rng.randbytes(rng.randint(1, 2000))
    with context.history.during("noise"):
        began = time.monotonic()
        try:
            async with asyncio.timeout(_NOISE_TIMEOUT_S):
                await _send_and_read(noise, context.deployment.port)
        except TimeoutError:
            if not context.history.is_berth_away(began, time.monotonic()):
                context.history.problems.append(
                    f"noise was neither answered nor disconnected: {noise[:100]!r}"
                )


async def _send_and_read(noise: bytes, port: int) -> None:
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(noise)
            writer.write_eof()
            await reader.read()
        finally:
            writer.close()


async def disconnect(context: FaultContext, rng: random.Random) -> None:
    """Disconnect during the request or the response."""
    body = json.dumps({"model": "model-0", "prompt": "x", "stream": True, "max_tokens": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}{_authorization(context.http)}\r\n".encode() + body
    with context.history.during("client left"), suppress(ConnectionError):
        _, writer = await asyncio.open_connection("127.0.0.1", context.deployment.port)
        writer.write(request[: rng.randint(1, len(request))])
        await asyncio.sleep(rng.uniform(0, 0.3))
        writer.transport.abort()


def _authorization(http: httpx.AsyncClient) -> str:
    return f"Authorization: {http.headers['authorization']}\r\n"


async def kill_berth(context: FaultContext, rng: random.Random) -> None:
    await context.deployment.end_and_restart("Berth killed", signal.SIGKILL, rng)


async def end_berth(context: FaultContext, rng: random.Random) -> None:
    """An orderly end. ON_SHUTDOWN is drawn for the next Berth, and applies when that one ends."""
    on_shutdown = rng.choice(("stop", "detach"))
    await context.deployment.end_and_restart("Berth ended", signal.SIGTERM, rng, ON_SHUTDOWN=on_shutdown)


async def kill_redis(context: FaultContext, rng: random.Random) -> None:
    """Kill Redis and restart it with all acknowledged writes."""
    if (redis := context.deployment.redis) is not None:
        with context.history.during("Redis killed", Impact.STORE):
            redis.kill()
            await asyncio.sleep(rng.uniform(*_AWAY_S))
            await asyncio.to_thread(redis.start)


async def freeze_redis(context: FaultContext, rng: random.Random) -> None:
    if (redis := context.deployment.redis) is not None:
        with context.history.during("Redis frozen", Impact.STORE):
            redis.freeze()
            try:
                await asyncio.sleep(rng.uniform(*_AWAY_S))
            finally:
                redis.thaw()


async def kill_redis_and_berth(context: FaultContext, rng: random.Random) -> None:
    if context.deployment.redis is not None:
        async with asyncio.TaskGroup() as group:
            group.create_task(kill_redis(context, rng))
            group.create_task(kill_berth(context, rng))


ON_ENGINES: tuple[Action, ...] = (kill_an_engine, kill_a_shim, freeze_an_engine, write_noise, disconnect)
ON_BERTH: tuple[Action, ...] = (kill_berth, kill_berth, end_berth)
ON_REDIS: tuple[Action, ...] = (kill_redis, freeze_redis, kill_redis_and_berth)
