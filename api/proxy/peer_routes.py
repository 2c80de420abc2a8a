"""Requests for models and instances of another Berth node: they are forwarded to that node unchanged.

The client's key is forwarded, and that node authorizes it again. A request is forwarded once: the header
x-berth-via marks it, and a marked request is never forwarded again, whoever set the header.
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
from instance_manager.errors import OwnerUnreachable
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.state.peers import Peers
from instance_manager.state.stores.records import Owner
from instance_manager.types import Endpoint

_BERTH = "berth:"


@dataclass(frozen=True, slots=True)
class PeerLease:
    """The lease of another node, which holds nothing: admission is decided there."""

    endpoint: Endpoint
    instance_id: str
    model_name: str = ""
    is_wanted: bool = False

    def release(self) -> None:
        """Nothing to release."""


class PeerRoute:
    """One request's route to another node; takes the place of our own leases."""

    def __init__(
        self, scope: Scope, owner: Owner, what: str, own_name: str, check: Callable[[], None]
    ) -> None:
        """`what`: the target, for messages. `check` raises ManagerError if no new requests are accepted."""
        self._scope = scope
        self._owner = owner
        self._what = what
        self._check = check
        self.headers: RawHeaders = [(VIA, own_name.encode())]
        self.headers += [pair for pair in scope["headers"] if pair[0] in KEY_HEADERS]

    @property
    def target(self) -> bytes:
        """Path and query as the client sent them."""
        path, query = raw_path(self._scope), self._scope["query_string"]
        return path + b"?" + query if query else path

    def try_lease(self, _: str) -> Lease:
        """Raises OwnerUnreachable, and what `check` raises."""
        self._check()
        owner = self._owner
        if not owner.is_alive:
            raise OwnerUnreachable(
                f"{self._what} belongs to the Berth node {owner.owner}, which is down (its lease expired); "
                "retry once it is back"
            )
        address = _address(owner.url)
        if address is None:
            raise OwnerUnreachable(
                f"{self._what} belongs to the Berth node {owner.owner}, which advertises no valid URL; "
                "set ADVERTISE_URL on that node"
            )
        return PeerLease(Endpoint(*address, api_key="", generation=0, is_peer=True), node_label(owner))

    async def wait_for_lease(self, instance_id: str) -> Lease:
        return self.try_lease(instance_id)


class RemoteModel(Model):
    """A model that another node serves."""

    def __init__(self, name: str, profile: ModelProfile | None, peer_route: PeerRoute) -> None:
        """`profile`: the local profile, if any, of which only the names are used."""
        if profile is not None:
            profile = replace(profile, set_params={}, strip_params=frozenset())
        super().__init__(name, profile, 0, time.monotonic)
        self.peer_route = peer_route


class PeerRoutes:
    """Finds routes to models and instances of other nodes."""

    def __init__(
        self,
        peers: Peers,
        metrics: ProxyMetrics,
        own_name: Callable[[], str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._peers = peers
        self._metrics = metrics
        self._own_name = own_name
        self._check = check

    def to_instance(self, scope: Scope, instance_id: str) -> PeerRoute | None:
        """The route to an instance of another node; None if there is none."""
        owner = self._peers.owner_of(instance_id)
        return None if owner is None else self._route(scope, owner, f"instance {instance_id!r}")

    def to_unknown(self, scope: Scope, name: str, need: RunnerKind | None = None) -> RemoteModel | None:
        """A model unknown here that another node has, in any state."""
        owner = self._peers.owner_having(name, need)
        return None if owner is None else self._model(scope, owner, name, None)

    def to_running(self, scope: Scope, model: Model, need: RunnerKind | None = None) -> RemoteModel | None:
        """A model known here that runs on another node and has no process on this one.

        `need`: only engines that can serve it count.
        """
        owner = self._peers.owner_running(model.name, need)
        is_here = model.is_loading or any(can_serve(instance.runner, need) for instance in model.live)
        if owner is None or is_here:
            return None
        return self._model(scope, owner, model.name, model.profile)

    def failed(self, lease: Lease) -> None:
        """The node of this lease could not be reached."""
        self._peers.avoid(lease.instance_id.removeprefix(_BERTH))

    def _model(
        self, scope: Scope, owner: Owner, name: str, profile: ModelProfile | None
    ) -> RemoteModel | None:
        peer_route = self._route(scope, owner, f"model {name!r}")
        return None if peer_route is None else RemoteModel(name, profile, peer_route)

    def _route(self, scope: Scope, owner: Owner, what: str) -> PeerRoute | None:
        if find_header(scope["headers"], VIA):
            return None
        self._metrics.of_peer(node_label(owner))
        return PeerRoute(scope, owner, what, self._own_name(), self._check)


def node_label(owner: Owner) -> str:
    """The name of another node in the place of an instance id, as in metrics."""
    return _BERTH + owner.owner


@lru_cache(maxsize=256)
def _address(url: str) -> tuple[str, int] | None:
    """Host and port; None for an invalid URL, as another node has written it."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            return None
        return parts.hostname, parts.port or 80
    except ValueError:
        return None
