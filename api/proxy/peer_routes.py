"""Requests for models and instances of another Berth node: they are forwarded to that node unchanged.

The client's key is forwarded, and that node authorizes it again. A request is forwarded once: the header
x-berth-via marks it, and a marked request is never forwarded again, whoever set the header.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from api.http.asgi import RawHeaders, Receive, Scope
from api.http.dispatch import raw_path
from api.http.headers import KEY_HEADERS, TRANSLATED, VIA, find_header
from api.http.response_channel import is_translated
from api.proxy.target import Target, UpstreamLease
from api.proxy.upstream_request import UpstreamRequest
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


@dataclass(frozen=True, slots=True)
class PeerTarget(Target):
    """Another node that has an instance or a model. Path, query and the client's key are sent unchanged."""

    routes: PeerRoutes
    owner: Owner
    name: str
    what: str  # for messages
    path: bytes
    headers: RawHeaders
    profile: ModelProfile | None = None  # of a model that is known here too: only its names are used
    adapt: Callable[[UpstreamRequest, Receive], Awaitable[Receive]] | None = None

    def try_acquire(self) -> PeerLease:
        """Raises OwnerUnreachable and ShuttingDown."""
        self.routes.check()
        owner = self.owner
        if not owner.is_alive:
            raise OwnerUnreachable(
                f"{self.what} belongs to the Berth node {owner.owner}, which is down (its lease expired); "
                "retry once it is back"
            )
        address = _address(owner.url)
        if address is None:
            raise OwnerUnreachable(
                f"{self.what} belongs to the Berth node {owner.owner}, which advertises no valid URL; "
                "set ADVERTISE_URL on that node"
            )
        return PeerLease(Endpoint(*address, api_key="", generation=0, is_peer=True), node_label(owner))

    async def acquire(self) -> PeerLease:
        return self.try_acquire()

    async def prepare(self, lease: UpstreamLease, request: UpstreamRequest, receive: Receive) -> Receive:
        return receive if self.adapt is None else await self.adapt(request, receive)

    def failed(self) -> None:
        """Make later requests avoid the node."""
        self.routes.avoid(self.owner)


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
        self.check = check  # raises ManagerError if no new requests are accepted

    def to_instance(self, scope: Scope, instance_id: str) -> PeerTarget | None:
        """An instance of another node; None if there is none."""
        owner = self._peers.owner_of(instance_id)
        return None if owner is None else self._target(scope, owner, instance_id, "instance")

    def to_unknown(self, scope: Scope, name: str, need: RunnerKind | None = None) -> PeerTarget | None:
        """A model unknown here that another node has, in any state."""
        owner = self._peers.owner_having(name, need)
        return None if owner is None else self._target(scope, owner, name, "model")

    def to_running(self, scope: Scope, model: Model, need: RunnerKind | None = None) -> PeerTarget | None:
        """A model known here that runs on another node and has no process on this one.

        `need`: only engines that can serve it count.
        """
        owner = self._peers.owner_running(model.name, need)
        is_here = model.is_loading or any(can_serve(instance.runner, need) for instance in model.live)
        if owner is None or is_here:
            return None
        return self._target(scope, owner, model.name, "model", model.profile)

    def avoid(self, owner: Owner) -> None:
        """This node could not be reached."""
        self._peers.avoid(owner.owner)

    def _target(
        self, scope: Scope, owner: Owner, name: str, kind: str, profile: ModelProfile | None = None
    ) -> PeerTarget | None:
        """None if the request has been forwarded before."""
        if find_header(scope["headers"], VIA):
            return None
        self._metrics.of_peer(node_label(owner))
        path, query = raw_path(scope), scope["query_string"]
        headers: RawHeaders = [(VIA, self._own_name().encode())]
        if is_translated(scope):
            headers.append((TRANSLATED, b"1"))
        headers += [pair for pair in scope["headers"] if pair[0] in KEY_HEADERS]
        target = path + b"?" + query if query else path
        return PeerTarget(self, owner, name, f"{kind} {name!r}", target, headers, profile)


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
