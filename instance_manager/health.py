"""Is the engine there, is it ours, and does it serve the right model?

An open port is not enough: `/health` must answer 200, the listener must be our process, and `/v1/models`
must take our key and name the model.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from instance_manager.process import Listener, listener_of

_POLL_MIN_S = 0.02
_POLL_MAX_S = 0.1
_POLL_GROWTH = 1.05  # quick for the first seconds, when a small engine comes up
_PROBE_TIMEOUT_S = 5.0
_NAMES_TIMEOUT_S = 2.0


class WrongEngine(Exception):
    """The engine is up and ours, but does not serve what it was started for."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What to ask whom. `model` is None for engines that need not name one."""

    host: str
    port: int
    pid: int
    api_key: str
    health_path: str
    model: str | None

    def url(self, path: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{path}"


@dataclass(slots=True)
class LastProbe:
    """What the latest probe met, for the message when time is up."""

    met: str = "nothing was asked yet"


def probe_client() -> httpx.AsyncClient:
    """The client for all probes: it minds no proxy variables and keeps no connections."""
    return httpx.AsyncClient(
        verify=False,  # noqa: S501 - spares loading the certificates; probes are plain HTTP on loopback
        trust_env=False,
        timeout=_PROBE_TIMEOUT_S,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def wait_until_ready(client: httpx.AsyncClient, probe: Probe, last: LastProbe) -> None:
    """Return when the engine is ready. Waits for ever: the caller sets the deadline. Raises WrongEngine."""
    interval = _POLL_MIN_S
    while (met := await _why_not_ready(client, probe)) is not None:
        last.met = met
        await asyncio.sleep(interval)
        interval = min(interval * _POLL_GROWTH, _POLL_MAX_S)


async def _why_not_ready(client: httpx.AsyncClient, probe: Probe) -> str | None:
    path = probe.health_path
    if not await _accepts_connections(probe.host, probe.port):
        return f"nothing listens for {probe.url(path)}"
    try:
        if (status := (await _get(client, probe, path)).status_code) != httpx.codes.OK:
            return f"{probe.url(path)} answered {status}"
        if probe.model is None:
            return None
        if await asyncio.to_thread(listener_of, probe.pid, probe.port) is Listener.FOREIGN:
            # Someone else was faster; our child will say so and exit.
            return f"{probe.url('')} is another program's"
        path = "/v1/models"
        response = await _get(client, probe, path)
        is_named = _names_model(response, probe.model)
        return None if is_named else f"{probe.url(path)} answered {response.status_code}"
    except httpx.TimeoutException:
        return f"{probe.url(path)} did not answer within {_PROBE_TIMEOUT_S:g} s"
    except httpx.HTTPError as error:
        return f"{probe.url(path)}: {error or type(error).__name__}"


async def _get(client: httpx.AsyncClient, probe: Probe, path: str) -> httpx.Response:
    return await client.get(probe.url(path), headers={"Authorization": f"Bearer {probe.api_key}"})


def _names_model(response: httpx.Response, model: str) -> bool:
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise WrongEngine("the engine refuses the key that Berth gave it in VLLM_API_KEY")
    if response.status_code != httpx.codes.OK:
        return False
    names = _model_names(response)
    if model not in names:
        raise WrongEngine(f"/v1/models names {', '.join(names) or 'no model'}, not {model!r}")
    return True


def _model_names(response: httpx.Response) -> list[str]:
    try:
        return [str(entry["id"]) for entry in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise WrongEngine("/v1/models does not answer with a list of models") from None


async def told_names(client: httpx.AsyncClient, probe: Probe) -> list[str]:
    """What an engine that need not name its model says it serves; nothing where it has no such list."""
    try:
        async with asyncio.timeout(_NAMES_TIMEOUT_S):
            response = await _get(client, probe, "/v1/models")
            return _model_names(response) if response.status_code == httpx.codes.OK else []
    except (httpx.HTTPError, TimeoutError, WrongEngine):
        return []


def name_to_send(told: Sequence[str], wanted: Sequence[str]) -> str | None:
    """What an engine is to be asked for, of the names it has told; None = as it was started.

    A name that is wanted, if it has it, the first best; else its only one. Of several none is guessed.
    """
    known = [name for name in wanted if name in told]
    return next(iter(known), told[0] if len(told) == 1 else None)


async def _accepts_connections(host: str, port: int) -> bool:
    """A bare connect: twenty times cheaper than a refused HTTP request, and most polls are refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(connection, (host, port))
        except OSError:  # refused, or no answer in time
            return False
    return True
