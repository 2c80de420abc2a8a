"""Requests for what another Berth runs: they go to that Berth's own front door, as they came.

The client's key goes along, and that Berth decides anew. A request goes on once: the header x-berth-via says
that it has, and with it nobody sends it any further, whoever set it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import urlsplit

from api.http.asgi import RawHeaders, Scope
from api.http.dispatch import raw_path
from api.http.headers import KEY_HEADERS, VIA, find_header
from api.http.leases import Lease
from instance_manager.backends.runner_kind import RunnerKind, can_serve
from instance_manager.errors import OwnerAway
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.state.peers import Neighbours
from instance_manager.state.stores.records import Owner
from instance_manager.types import Endpoint

_BERTH = "berth:"


@dataclass(frozen=True, slots=True)
class PeerLease:
    """The lease of another Berth's door, where nothing is held: admission is that Berth's affair."""

    endpoint: Endpoint
    instance_id: str
    model_name: str = ""
    is_wanted: bool = False

    def release(self) -> None:
        """There is nothing to give back."""


class PeerRoute:
    """One request's way to another Berth; stands where leases of our own would be asked for."""

    def __init__(
        self, scope: Scope, owner: Owner, what: str, own_name: str, check: Callable[[], None]
    ) -> None:
        """`what` is asked for, in words. `check` raises ManagerError where nothing new is taken."""
        self._scope = scope
        self._owner = owner
        self._what = what
        self._check = check
        self.headers: RawHeaders = [(VIA, own_name.encode())]
        self.headers += [pair for pair in scope["headers"] if pair[0] in KEY_HEADERS]

    @property
    def target(self) -> bytes:
        """Path and query as the client wrote them."""
        path, query = raw_path(self._scope), self._scope["query_string"]
        return path + b"?" + query if query else path

    def try_lease(self, _: str) -> Lease:
        """Raises OwnerAway, and what the Berth that is asked says about itself."""
        self._check()
        owner = self._owner
        if not owner.is_alive:
            raise OwnerAway(
                f"{self._what} is owned by Berth {owner.owner}, which is away: its lease has run out. It is "
                "served again once that Berth is back"
            )
        address = _address(owner.url)
        if address is None:
            raise OwnerAway(
                f"{self._what} is owned by Berth {owner.owner}, which doesn't say where it is reached; "
                "set ADVERTISE_URL there"
            )
        return PeerLease(Endpoint(*address, api_key="", generation=0, is_peer=True), label(owner))

    async def wait_for_lease(self, instance_id: str) -> Lease:
        return self.try_lease(instance_id)


class RemoteModel(Model):
    """Stands in for a model that another Berth serves."""

    def __init__(self, name: str, profile: ModelProfile | None, peer_route: PeerRoute) -> None:
        """`profile`: what is known of it here, of which the names alone count."""
        if profile is not None:
            profile = replace(profile, set_params={}, strip_params=frozenset())
        super().__init__(name, profile, 0, time.monotonic)
        self.peer_route = peer_route


class PeerRoutes:
    """Finds the way to what isn't here."""

    def __init__(
        self,
        neighbours: Neighbours,
        metrics: ProxyMetrics,
        own_name: Callable[[], str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._neighbours = neighbours
        self._metrics = metrics
        self._own_name = own_name
        self._check = check

    def to_instance(self, scope: Scope, instance_id: str) -> PeerRoute | None:
        """The way to an instance that another Berth owns; None where there is none to go."""
        owner = self._neighbours.owner_of(instance_id)
        return None if owner is None else self._detour(scope, owner, f"instance {instance_id!r}")

    def to_unknown(self, scope: Scope, name: str, need: RunnerKind | None = None) -> RemoteModel | None:
        """A model of which nothing is known here, where another Berth has it in whatever state."""
        owner = self._neighbours.owner_having(name, need)
        return None if owner is None else self._model(scope, owner, name, None)

    def to_running(self, scope: Scope, model: Model, need: RunnerKind | None = None) -> RemoteModel | None:
        """A model that is known here, where it runs on another Berth and has no process on this one.

        `need`: what the engine has to serve; others don't count.
        """
        owner = self._neighbours.owner_running(model.name, need)
        is_here = model.is_loading or any(can_serve(one.runner, need) for one in model.live)
        if owner is None or is_here:
            return None
        return self._model(scope, owner, model.name, model.profile)

    def failed(self, lease: Lease) -> None:
        """Its Berth could not be reached."""
        self._neighbours.avoid(lease.instance_id.removeprefix(_BERTH))

    def _model(
        self, scope: Scope, owner: Owner, name: str, profile: ModelProfile | None
    ) -> RemoteModel | None:
        peer_route = self._detour(scope, owner, f"model {name!r}")
        return None if peer_route is None else RemoteModel(name, profile, peer_route)

    def _detour(self, scope: Scope, owner: Owner, what: str) -> PeerRoute | None:
        if find_header(scope["headers"], VIA):
            return None
        self._metrics.of_berth(label(owner))
        return PeerRoute(scope, owner, what, self._own_name(), self._check)


def label(owner: Owner) -> str:
    """What stands for another Berth where an instance is named otherwise, as in metrics."""
    return _BERTH + owner.owner


@lru_cache(maxsize=256)
def _address(url: str) -> tuple[str, int] | None:
    """Host and port; None for what is no such URL: another Berth has written it."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            return None
        return parts.hostname, parts.port or 80
    except ValueError:
        return None
