"""A request routed to a model, and leases of any replica that can serve it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from api.access.keys import caller_of
from api.gateway.request_body import OutgoingBody
from api.http.asgi import Receive, Scope
from api.http.leases import Lease
from api.proxy.upstream_request import UpstreamRequest
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
class RoutedRequest:
    """A request with its model, its outgoing body and its scheduling fields."""

    model: Model
    receive: Receive  # the client's messages after those in `outgoing`
    outgoing: OutgoingBody | None = None  # None: no body, or it is forwarded unchanged
    need: RunnerKind | None = None  # the kind of replica that can serve it
    name: str | None = None  # the model's name in the body
    is_stream: bool = False
    priority: int = 0
    affinity: bytes = b""
    idle_timeout_s: float | None = None


class ModelLeases:
    """Leases for one request; the data plane asks for an instance and gets any replica of the model."""

    def __init__(self, fleet: Fleet, routed: RoutedRequest) -> None:
        self._fleet = fleet
        self._request = routed
        self._was_retried = False

    def try_lease(self, _: str) -> Lease | None:
        lease = self._fleet.try_lease(self._request.model, self._request.affinity, self._request.need)
        return None if lease is None else self._granted(lease)

    async def wait_for_lease(self, _: str) -> Lease:
        routed = self._request
        return self._granted(await self._fleet.wait_for_lease(routed.model, routed.priority, routed.need))

    async def prepare(self, lease: Lease, request: UpstreamRequest, receive: Receive) -> Receive:
        """Adapt the request to the engine of `lease`, which may serve the model under another name."""
        outgoing = self._request.outgoing
        if outgoing is None:
            return receive
        endpoint, routed = lease.endpoint, self._request
        adapters = endpoint.adapters
        if endpoint.is_peer and routed.model.profile is not None:
            adapters = adapter_names(routed.model.profile.params)
        name = routed.name if routed.name in adapters else endpoint.served_name
        return await outgoing.begin(name or routed.model.name, request, receive)

    async def retry(self, lease: Lease, receive: Receive) -> Receive | None:
        """Retry once if the engine has died; if it was stopped, only if another replica serves the model."""
        routed = self._request
        if self._was_retried or routed.outgoing is None or not routed.outgoing.body.can_repeat:
            return None
        self._was_retried = True
        try:
            instance = self._fleet.manager.get(lease.instance_id)
            async with asyncio.timeout(_NOTICE_S):  # until the supervisor has noticed the end too
                while instance.gate.is_open and instance.generation == lease.endpoint.generation:
                    await instance.wait_for_change()
        except InstanceNotFound:
            has_died = False
        except TimeoutError:
            return None
        else:
            has_died = instance.state not in (InstanceState.STOPPING, InstanceState.STOPPED)
        return receive if has_died or routed.model.is_awake_for(routed.need) else None

    def _granted(self, lease: Lease) -> Lease:
        if self._request.idle_timeout_s is not None:
            self._fleet.manager.patch(lease.instance_id, idle_timeout_s=self._request.idle_timeout_s)
        return lease


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
