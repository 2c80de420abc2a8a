"""What one request asks of a model, and the leases of whichever replica serves it."""

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
from api.proxy.exchange import Request
from instance_manager.backends.params import adapter_names
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.errors import InstanceNotFound
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.types import InstanceState

_NOTICE_S = 5.0  # within which the end of an engine is noticed
_AFFINITY_CHARS, _SALT_CHARS = 512, 64
_MAX_AFFINITY_FIELDS = 8
_MAX_AFFINITY_NUMBER = 2**63


@dataclass(slots=True)
class RoutedRequest:
    """What a request asks for."""

    model: Model
    receive: Receive  # what the client still sends or does, once `outgoing` has given its part
    outgoing: OutgoingBody | None = None  # None: there is no body, or it goes on as it comes
    need: RunnerKind | None = None  # what its replica has to serve
    name: str | None = None  # the model's, as the body has it
    is_stream: bool = False
    priority: int = 0
    affinity: bytes = b""
    idle_timeout_s: float | None = None


class ModelLeases:
    """The data plane's view of one request's model; where it asks for an instance it gets any replica."""

    def __init__(self, fleet: Fleet, asked: RoutedRequest) -> None:
        self._fleet = fleet
        self._asked = asked
        self._is_repeated = False

    def try_lease(self, _: str) -> Lease | None:
        lease = self._fleet.try_lease(self._asked.model, self._asked.affinity, self._asked.need)
        return None if lease is None else self._granted(lease)

    async def wait_for_lease(self, _: str) -> Lease:
        asked = self._asked
        return self._granted(await self._fleet.wait_for_lease(asked.model, asked.priority, asked.need))

    async def prepare(self, lease: Lease, request: Request, receive: Receive) -> Receive:
        """Finish the request for the engine of `lease`, which may know the model by another name."""
        outgoing = self._asked.outgoing
        if outgoing is None:
            return receive
        endpoint, asked = lease.endpoint, self._asked
        adapters = endpoint.adapters
        if endpoint.is_peer and asked.model.profile is not None:
            adapters = adapter_names(asked.model.profile.params)
        name = asked.name if asked.name in adapters else endpoint.served_name
        return await outgoing.begin(name or asked.model.name, request, receive)

    async def again(self, lease: Lease, receive: Receive) -> Receive | None:
        """Once more, once, if the engine has died; not where it was stopped and no other serves the model."""
        asked = self._asked
        if self._is_repeated or asked.outgoing is None or not asked.outgoing.body.can_repeat:
            return None
        self._is_repeated = True
        try:
            instance = self._fleet.manager.get(lease.instance_id)
            async with asyncio.timeout(_NOTICE_S):  # until the supervisor has seen the end too
                while instance.gate.is_open and instance.spawns == lease.endpoint.generation:
                    await instance.changed()
        except InstanceNotFound:
            has_died = False
        except TimeoutError:
            return None
        else:
            has_died = instance.state not in (InstanceState.STOPPING, InstanceState.STOPPED)
        return receive if has_died or asked.model.is_awake_for(asked.need) else None

    def _granted(self, lease: Lease) -> Lease:
        if self._asked.idle_timeout_s is not None:
            self._fleet.manager.patch(lease.instance_id, timeout_s=self._asked.idle_timeout_s)
        return lease


def affinity_of(model: Model, body: dict[str, Any], scope: Scope) -> bytes:
    """What requests share whose prompts begin alike; nothing where there is no choice.

    Those that find none of each other's prefixes share nothing, either.
    """
    if len(model.replicas) < 2:
        return b""
    prompt = body.get("messages") or body.get("prompt") or body.get("input")
    if not prompt:
        return b""
    salt = body.get("cache_salt")
    whose = f"{caller_of(scope).cache_owner}:{salt[:_SALT_CHARS] if isinstance(salt, str) else ''}:"
    return (whose + "".join(_beginning(prompt))[:_AFFINITY_CHARS]).encode("utf-8", "replace")


def _beginning(value: Any, depth: int = 4) -> Iterator[str]:
    """The beginnings of the texts in there, of the first two of each list: never more than a few of them."""
    if isinstance(value, str):
        yield value[:_AFFINITY_CHARS]
    elif isinstance(value, list) and depth:
        first = value[: _AFFINITY_CHARS if value and isinstance(value[0], int) else 2]
        for one in first:
            yield from _beginning(one, depth - 1)
    elif isinstance(value, dict) and depth:
        for one in islice(value.values(), _MAX_AFFINITY_FIELDS):
            yield from _beginning(one, depth - 1)
    elif isinstance(value, int | float) and abs(value) < _MAX_AFFINITY_NUMBER:
        yield f"{value},"
