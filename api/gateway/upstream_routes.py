"""`/upstream/{model}/{path}`: any route of a model's engine by the model's name, as llama-swap has it.

As `/proxy/{id}/{path}`, but a model that doesn't run is started, whatever the method. Forwarded unchanged.
"""

from __future__ import annotations

import time
from urllib.parse import unquote_to_bytes

from api.access.engine_routes import RequestRoutes
from api.access.keys import Access, caller_of, is_admin, model_refusal
from api.gateway.model_target import ModelTarget
from api.gateway.needs import need_of
from api.http.asgi import Receive, Scope, Send
from api.http.dispatch import raw_path
from api.http.errors import ApiError, api_error, error_for
from api.http.respond import refuse_handshake, request_id_of, send_error
from api.http.response_channel import Handler
from api.http.route import RoutedApp
from api.proxy.peer_routes import PeerRoutes
from api.proxy.proxy import DataPlane
from api.proxy.sleep_routes import is_sleep_route
from api.proxy.target import Target
from api.telemetry.access_log import log_answered
from instance_manager.errors import ManagerError, ModelNotFound
from instance_manager.fleet.fleet import Fleet

PREFIX = b"/upstream/"
_POLICY_VIOLATION = 1008


class UpstreamRoutes(RoutedApp):
    """An ASGI application for http and websocket scopes whose path begins with `PREFIX`."""

    def __init__(
        self,
        fleet: Fleet,
        data_plane: DataPlane,
        routes: RequestRoutes,
        peer_routes: PeerRoutes | None = None,
    ) -> None:
        """`routes`: those of an engine that need no admin key."""
        self._fleet = fleet
        self._data_plane = data_plane
        self._routes = routes
        self._peer_routes = peer_routes

    def route(self, scope: Scope) -> Handler:
        return Handler(self._serve, lasts=False)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            target = self._target(scope)
        except ManagerError as error:
            target = error_for(error, is_admin=is_admin(scope))
        if isinstance(target, ApiError):
            await self._refuse(scope, receive, send, target, started)
        else:
            await self._data_plane.forward_any(scope, receive, send, target)

    def _target(self, scope: Scope) -> Target | ApiError:
        """Raises ModelNotFound."""
        name, path = self._split(raw_path(scope).removeprefix(PREFIX))
        if caller_of(scope).access < Access.ADMIN and not self._routes.has(path, scope.get("method", "POST")):
            message = "this key may only send requests to engines; use an admin key, or add to REQUEST_PATHS"
            return api_error(403, message, "permission_error", code="admin_key_required")
        if is_sleep_route(path):
            message = f"Berth puts engines to sleep itself: POST /models/{name}/sleep"
            return api_error(400, message, "invalid_request_error")
        model, need = self._fleet.known(name), need_of(path)
        if self._peer_routes is not None:
            routes = self._peer_routes
            peer = routes.to_running(scope, model, need) if model else routes.to_unknown(scope, name, need)
            if peer is not None:
                return model_refusal(scope, peer) or peer
        if model is None:
            model = self._fleet.find(name)
        query = scope["query_string"]
        target = path + b"?" + query if query else path
        refusal = model_refusal(scope, model)
        return refusal or ModelTarget(self._fleet, model, model.name, target, None, need, None)

    def _split(self, path: bytes) -> tuple[str, bytes]:
        """Model and the engine's path. A model's name may have slashes: the longest known one counts.

        Raises ModelNotFound.
        """
        parts = path.split(b"/")
        for count in range(len(parts), 0, -1):
            name = unquote_to_bytes(b"/".join(parts[:count])).decode("utf-8", "replace")
            is_known = self._fleet.known(name) is not None or name in self._fleet.manager.peers.models()
            if name and is_known:
                return name, b"/" + b"/".join(parts[count:])
        raise ModelNotFound(
            f"no model is named at the beginning of {path.decode('ascii', 'backslashreplace')!r}; "
            "GET /v1/models lists all",
            param="model",
        )

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: ApiError, started: float
    ) -> None:
        request_id = request_id_of(scope)
        self._data_plane.count_refused(scope.get("method", "WEBSOCKET"), error.status)
        log_answered(scope, error.status, started, request_id, "refused by the gateway")
        if scope["type"] == "websocket":
            await receive()
            await refuse_handshake(scope, send, error, request_id, _POLICY_VIOLATION)
        else:
            await send_error(send, error, raw_path(scope), request_id)
