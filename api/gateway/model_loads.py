"""Requests that load or unload a model and ask its engine nothing, as Ollama's clients send them."""

from __future__ import annotations

from api.access.keys import is_admin
from api.gateway.gateway import Gateway
from api.gateway.model_target import ModelTarget
from api.http.asgi import Receive, Scope, Send
from api.http.errors import RequestRefused, error_for
from api.protocols.base import LoadRequest
from api.proxy.proxy import DataPlane
from api.proxy.target import acquire_while_connected
from instance_manager.errors import ManagerError


class ModelLoads:
    """Serves them for the protocols; the body's `keep_alive` takes effect as in any request."""

    def __init__(self, gateway: Gateway, data_plane: DataPlane) -> None:
        self._gateway = gateway
        self._data_plane = data_plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send, load: LoadRequest) -> bool:
        """False: the node that has the model has answered by `send`. Raises RequestRefused and ClientGone."""
        try:
            target, rest = await self._gateway.target_for(scope, receive, load.model)
            if not isinstance(target, ModelTarget):
                await self._data_plane.forward(scope, rest, send, target)
                return False
            if load.unloads:
                target.unload()
            else:
                lease = target.try_acquire()
                if lease is None:
                    lease, _ = await acquire_while_connected(target, rest)
                lease.release()
        except ManagerError as error:
            raise RequestRefused(error_for(error, is_admin=is_admin(scope))) from None
        return True
