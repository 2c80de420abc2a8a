"""Readiness: is the engine up, is it our process, and does it serve the right model?

An open port is not enough: `/health` must answer 200, the listener must be our process, and `/v1/models`
must accept our key and name the model.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx
from pydantic_core import from_json

from instance_manager.lifecycle.bounded_fetch import EngineResponse, ResponseTooLong, engine_client, fetch
from instance_manager.process.process_group import PortOwner

_POLL_MIN_S = 0.02
_POLL_MAX_S = 0.1
_POLL_GROWTH = 1.05  # frequent in the first seconds, when a small engine becomes ready
_PROBE_TIMEOUT_S = 5.0
_NAMES_TIMEOUT_S = 2.0

_MAX_HEALTH_BYTES = 64 * 1024
_MAX_LIST_BYTES = 1024 * 1024
_MAX_NAME_CHARS = 1024
_MAX_QUOTED_NAMES, _MAX_QUOTED_CHARS = 5, 200  # in a message


class WrongEngine(Exception):
    """The engine is up and ours, but does not serve what it was started for."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Where to send probes. `model` is None for engines that need not name their model."""

    host: str
    port: int
    port_owner: Callable[[int], PortOwner]  # of a port; blocks
    api_key: str
    health_path: str
    model: str | None
    api_key_variable: str  # from which the engine has read its key

    def url(self, path: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{path}"


@dataclass(slots=True)
class LastProbe:
    """Why the latest probe failed, for the message after a timeout."""

    problem: str = "no probe was sent yet"


def probe_client() -> httpx.AsyncClient:
    """The client for all probes."""
    return engine_client(_PROBE_TIMEOUT_S)


async def wait_until_ready(client: httpx.AsyncClient, probe: Probe, last: LastProbe) -> None:
    """Return when the engine is ready. The caller sets the deadline. Raises WrongEngine."""
    interval = _POLL_MIN_S
    while (problem := await _readiness_problem(client, probe)) is not None:
        last.problem = problem
        await asyncio.sleep(interval)
        interval = min(interval * _POLL_GROWTH, _POLL_MAX_S)


async def _readiness_problem(client: httpx.AsyncClient, probe: Probe) -> str | None:
    path = probe.health_path
    if not await _accepts_connections(probe.host, probe.port):
        return f"nothing listens for {probe.url(path)}"
    try:
        if (status := (await _get(client, probe, path, _MAX_HEALTH_BYTES)).status) != httpx.codes.OK:
            return f"{probe.url(path)} answered {status}"
        if probe.model is None:
            return None
        if await asyncio.to_thread(probe.port_owner, probe.port) is PortOwner.FOREIGN:
            # Another program bound it first; our child will report that and exit.
            return f"{probe.url('')} belongs to another program"
        path = "/v1/models"
        response = await _get(client, probe, path, _MAX_LIST_BYTES)
        is_named = _names_model(response, probe.model, probe.api_key_variable)
        return None if is_named else f"{probe.url(path)} answered {response.status}"
    except httpx.TimeoutException:
        return f"{probe.url(path)} did not answer within {_PROBE_TIMEOUT_S:g} s"
    except ResponseTooLong as error:
        raise WrongEngine(f"{path}: {error}") from None
    except httpx.HTTPError as error:
        return f"{probe.url(path)}: {error or type(error).__name__}"


async def _get(
    client: httpx.AsyncClient, probe: Probe, path: str, max_bytes: int, timeout_s: float = _PROBE_TIMEOUT_S
) -> EngineResponse:
    headers = {"Authorization": f"Bearer {probe.api_key}"}
    return await fetch(
        client, "GET", probe.url(path), headers=headers, timeout_s=timeout_s, max_bytes=max_bytes
    )


def _names_model(response: EngineResponse, model: str, api_key_variable: str) -> bool:
    if response.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise WrongEngine(f"the engine refuses the key that Berth gave it in {api_key_variable}")
    if not response.is_ok:
        return False
    names = _model_names(response)
    if model not in names:
        raise WrongEngine(f"/v1/models names {_quoted(names) or 'no model'}, not {model!r}")
    return True


def _model_names(response: EngineResponse) -> list[str]:
    """The listed names, overlong ones left out. Raises WrongEngine."""
    try:
        names = [str(entry["id"]) for entry in from_json(response.body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WrongEngine("/v1/models does not return a list of models") from None
    return [name for name in names if len(name) <= _MAX_NAME_CHARS]


def _quoted(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_QUOTED_NAMES} more" if len(names) > _MAX_QUOTED_NAMES else ""
    return ", ".join(name[:_MAX_QUOTED_CHARS] for name in names[:_MAX_QUOTED_NAMES]) + more


async def reported_names(client: httpx.AsyncClient, probe: Probe) -> list[str]:
    """The model names an engine reports that need not name its model; empty if it has no such list."""
    try:
        response = await _get(client, probe, "/v1/models", _MAX_LIST_BYTES, _NAMES_TIMEOUT_S)
        return _model_names(response) if response.is_ok else []
    except (httpx.HTTPError, WrongEngine):
        return []


def choose_model_name(reported: Sequence[str], preferred: Sequence[str]) -> str | None:
    """The model name to send to an engine, out of those it reported; None = the name it was started with.

    The first preferred name that it reported, else its only one; among several it doesn't guess.
    """
    known = [name for name in preferred if name in reported]
    return next(iter(known), reported[0] if len(reported) == 1 else None)


async def _accepts_connections(host: str, port: int) -> bool:
    """A bare connect is twenty times cheaper than a refused HTTP request, and most polls are refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(connection, (host, port))
        except OSError:  # refused, or no answer in time
            return False
    return True
