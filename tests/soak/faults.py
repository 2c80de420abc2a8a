"""What happens to engines, clients, Berth and Redis in a storm: killed, frozen, ended, written noise to."""

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

from tests.soak.deployment import Place
from tests.soak.history import Harm

_FROZEN_S = (0.1, 3.0)
_AWAY_S = (0.2, 4.0)
_PATIENCE_S = 15.0
_SECONDS_TO_TAKE_EFFECT = 0.2

Act = Callable[["Weather", random.Random], Awaitable[None]]


class Weather:
    """Where the faults strike: the place, an operator's client, and which model each engine is of."""

    def __init__(self, place: Place, http: httpx.AsyncClient, models: list[str]) -> None:
        self.place = place
        self.history = place.history
        self.http = http
        self.models = models
        self.model_of: dict[str, str] = {}  # by instance, also of those that are gone
        self._model_of_pid: dict[int, str] = {}

    async def engine(self, dice: random.Random) -> tuple[int, str | None] | None:
        """The pid of one that lives, and its model; Berth need not serve for that."""
        await self.look()
        pids = [pid for pid in sorted(self._model_of_pid) if self.place.is_ours(pid)]
        if not pids:
            return None
        pid = dice.choice(pids)
        return pid, self._model_of_pid[pid]

    async def look(self) -> None:
        """Which instances there are, as far as Berth answers."""
        with suppress(httpx.HTTPError, KeyError, ValueError):
            for one in (await self.http.get("/instances")).json()["data"]:
                model = self.model_of[one["instance_id"]] = one["profile"] or one["instance_id"]
                if one["pid"] is not None:
                    self._model_of_pid[one["pid"]] = model


async def kill_an_engine(weather: Weather, dice: random.Random) -> None:
    if (found := await weather.engine(dice)) is not None:
        with weather.history.during("engine killed", Harm.ENGINE, found[1]):
            _kill(found[0])
            await asyncio.sleep(_SECONDS_TO_TAKE_EFFECT)


async def kill_a_shim(weather: Weather, dice: random.Random) -> None:
    if (found := await weather.engine(dice)) is None:
        return
    with suppress(psutil.Error):
        shim = psutil.Process(found[0]).parent()
        if shim is not None and any("shim" in part for part in shim.cmdline()):
            with weather.history.during("shim killed", Harm.ENGINE, found[1]):
                _kill(shim.pid)
                await asyncio.sleep(_SECONDS_TO_TAKE_EFFECT)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def freeze_an_engine(weather: Weather, dice: random.Random) -> None:
    if (found := await weather.engine(dice)) is None:
        return
    with weather.history.during("engine frozen"), suppress(ProcessLookupError):
        os.kill(found[0], signal.SIGSTOP)
        try:
            await asyncio.sleep(dice.uniform(*_FROZEN_S))
        finally:
            os.kill(found[0], signal.SIGCONT)


async def write_noise(weather: Weather, dice: random.Random) -> None:
    noise = dice.choice((b"", b"POST /v1/completions HTTP/1.1\r\n")) + dice.randbytes(dice.randint(1, 2000))
    with weather.history.during("noise"):
        began = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await _hear_answer_to(noise, weather.place.port)
        except TimeoutError:
            if not weather.history.is_berth_away(began, time.monotonic()):
                weather.history.problems.append(f"noise was neither answered nor hung up on: {noise[:100]!r}")


async def _hear_answer_to(noise: bytes, port: int) -> None:
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(noise)
            writer.write_eof()
            await reader.read()
        finally:
            writer.close()


async def leave(weather: Weather, dice: random.Random) -> None:
    """Amid the request, or amid its answer."""
    body = json.dumps({"model": "model-0", "prompt": "x", "stream": True, "max_tokens": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}{_authorization(weather.http)}\r\n".encode() + body
    with weather.history.during("client left"), suppress(ConnectionError):
        _, writer = await asyncio.open_connection("127.0.0.1", weather.place.port)
        writer.write(request[: dice.randint(1, len(request))])
        await asyncio.sleep(dice.uniform(0, 0.3))
        writer.transport.abort()


def _authorization(http: httpx.AsyncClient) -> str:
    return f"Authorization: {http.headers['authorization']}\r\n"


async def kill_berth(weather: Weather, dice: random.Random) -> None:
    await weather.place.fell("Berth killed", signal.SIGKILL, dice)


async def end_berth(weather: Weather, dice: random.Random) -> None:
    """In order; what becomes of engines is decided when it is the next one's turn to end."""
    on_shutdown = dice.choice(("stop", "detach"))
    await weather.place.fell("Berth ended", signal.SIGTERM, dice, ON_SHUTDOWN=on_shutdown)


async def kill_redis(weather: Weather, dice: random.Random) -> None:
    """It comes back with all that it had acknowledged."""
    if (redis := weather.place.redis) is not None:
        with weather.history.during("Redis killed", Harm.STORE):
            redis.kill()
            await asyncio.sleep(dice.uniform(*_AWAY_S))
            await asyncio.to_thread(redis.start)


async def freeze_redis(weather: Weather, dice: random.Random) -> None:
    if (redis := weather.place.redis) is not None:
        with weather.history.during("Redis frozen", Harm.STORE):
            redis.freeze()
            try:
                await asyncio.sleep(dice.uniform(*_AWAY_S))
            finally:
                redis.thaw()


async def kill_redis_and_berth(weather: Weather, dice: random.Random) -> None:
    if weather.place.redis is not None:
        async with asyncio.TaskGroup() as group:
            group.create_task(kill_redis(weather, dice))
            group.create_task(kill_berth(weather, dice))


ON_ENGINES: tuple[Act, ...] = (kill_an_engine, kill_a_shim, freeze_an_engine, write_noise, leave)
ON_BERTH: tuple[Act, ...] = (kill_berth, kill_berth, end_berth)
ON_REDIS: tuple[Act, ...] = (kill_redis, freeze_redis, kill_redis_and_berth)
