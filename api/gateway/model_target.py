"""A request to a model: it gets a lease of any replica that can serve it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from api.access.keys import caller_of
from api.gateway.request_body import JsonBody, OutgoingBody
from api.gateway.request_reader import ReadRequest
from api.gateway.translation import EngineTranslation
from api.http.asgi import Receive, Scope
from api.proxy.peer_routes import PeerTarget
from api.proxy.target import Target, UpstreamLease
from api.proxy.upstream_request import UpstreamRequest
from instance_manager.backends.load_signs import LoadProgress
from instance_manager.backends.params import adapter_names
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.errors import InstanceNotFound
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.types import InstanceState

_NOTICE_S = 5.0  # for the supervisor to notice that an engine has ended
_AFFINITY_CHARS, _SALT_CHARS = 512, 64
_MAX_AFFINITY_FIELDS = 8
_MAX_AFFINITY_NUMBER = 2**63


@dataclass(slots=True)
class ModelTarget(Target):
    """Any replica of a model that can serve the request. `body` as bytes: a short JSON object as it came."""

    fleet: Fleet
    model: Model
    name: str
    path: bytes
    called: str | None  # the model's name in the body
    need: RunnerKind | None  # the kind of replica that can serve it
    body: OutgoingBody | bytes | None  # None: no body, or it is forwarded unchanged
    affinity: bytes = b""
    priority: int = 0
    idle_timeout_s: float | None = None
    was_retried: bool = False
    dialect: EngineTranslation | None = None  # for engines that don't speak the request's API
    translation: EngineTranslation | None = None  # the same, once the lease is of such an engine

    def try_acquire(self) -> UpstreamLease | None:
        lease = self.fleet.try_lease(self.model, self.affinity, self.need)
        return None if lease is None else self._granted(lease)

    async def acquire(self) -> UpstreamLease:
        return self._granted(await self.fleet.wait_for_lease(self.model, self.priority, self.need))

    def load_progress(self) -> LoadProgress | None:
        return self.model.load_progress

    async def prepare(self, lease: UpstreamLease, request: UpstreamRequest, receive: Receive) -> Receive:
        """The engine may serve the model under another name, or speak another API."""
        body = self._outgoing()
        if body is None:
            return receive
        endpoint = lease.endpoint
        adapter = None if self.called is None else self.fleet.adapter_in(self.called)
        name = adapter or (self.called if self.called in endpoint.adapters else endpoint.served_name)
        if self.dialect is not None:
            self.translation, request.target = None, self.path
            if await self.dialect.begin(endpoint):
                self.translation = self.dialect
                return await self.dialect.prepare(name or self.name, self.model.profile, request, receive)
        return await body.begin(name or self.name, request, receive)

    async def may_retry(self, lease: UpstreamLease) -> bool:
        """Once, if the engine has died; if it was stopped, only if another replica serves the model."""
        body = self._outgoing()
        if self.was_retried or body is None or not body.body.can_repeat:
            return False
        self.was_retried = True
        try:
            instance = self.fleet.manager.get(lease.instance_id)
            async with asyncio.timeout(_NOTICE_S):  # until the supervisor has noticed the end too
                while instance.gate.is_open and instance.generation == lease.endpoint.generation:
                    await instance.wait_for_change()
        except InstanceNotFound:
            has_died = False
        except TimeoutError:
            return False
        else:
            has_died = instance.state not in (InstanceState.STOPPING, InstanceState.STOPPED)
        return has_died or self.model.is_awake_for(self.need)

    def unload(self) -> None:
        """Let the replicas that are awake expire, once they are idle, by the request's `keep_alive`."""
        for one in self.model.awake:
            self.fleet.manager.patch(one.instance_id, idle_timeout_s=self.idle_timeout_s)

    def _outgoing(self) -> OutgoingBody | None:
        if isinstance(self.body, bytes):
            self.body = OutgoingBody(JsonBody(self.body, None, self.model.profile), len(self.body))
        return self.body

    def _granted(self, lease: UpstreamLease) -> UpstreamLease:
        if self.idle_timeout_s is not None:
            self.fleet.manager.patch(lease.instance_id, idle_timeout_s=self.idle_timeout_s)
        return lease


def for_peer(target: PeerTarget, read: ReadRequest, *, names_adapter: bool = False) -> PeerTarget:
    """The target with the request's body, in which the model has the name that the other node knows.

    `names_adapter`: it is called `model:adapter`.
    """
    body = read.outgoing(None, is_for_peer=True)
    if body is None:
        return target
    adapters = () if target.profile is None else adapter_names(target.profile.params)
    name = read.name if names_adapter or read.name in adapters else None
    return replace(target, adapt=partial(body.begin, name or target.name))


def affinity_of(model: Model, body: dict[str, Any], scope: Scope) -> bytes:
    """A key shared by requests whose prompts begin alike; empty if there is only one replica.

    Requests that must not share prefix caches get different keys.
    """
    if len(model.replicas) < 2:
        return b""
    prompt = body.get("messages") or body.get("prompt") or body.get("input")
    if not prompt:
        return b""
    salt = body.get("cache_salt")
    owner = f"{caller_of(scope).cache_owner}:{salt[:_SALT_CHARS] if isinstance(salt, str) else ''}:"
    return (owner + "".join(_beginning(prompt))[:_AFFINITY_CHARS]).encode("utf-8", "replace")


def _beginning(value: Any, depth: int = 4) -> Iterator[str]:
    """The beginnings of a value's strings; of each list only the first two items."""
    if isinstance(value, str):
        yield value[:_AFFINITY_CHARS]
    elif isinstance(value, list) and depth:
        first = value[: _AFFINITY_CHARS if value and isinstance(value[0], int) else 2]
        for item in first:
            yield from _beginning(item, depth - 1)
    elif isinstance(value, dict) and depth:
        for item in islice(value.values(), _MAX_AFFINITY_FIELDS):
            yield from _beginning(item, depth - 1)
    elif isinstance(value, int | float) and abs(value) < _MAX_AFFINITY_NUMBER:
        yield f"{value},"
