"""The thin ASGI application in front: routes requests by path alone."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from api.http.asgi import App, Receive, Scope, Send
from api.http.head_cache import ROUTE_CACHE, RouteCache
from api.http.response_channel import Begin, FastPathApp, ResponseChannel, ResumeAsTask

_PREFIX = b"/proxy/"


class Dispatcher:
    """An ASGI application: `data_plane` gets http and websocket under /proxy/, `control` the rest."""

    def __init__(
        self,
        control: App,
        data_plane: FastPathApp,
        gateway: App | None = None,
        is_for_gateway: Callable[[Scope], bool] = lambda _: False,
        begin_in_gateway: Begin | None = None,
    ) -> None:
        self._control = control
        self._data_plane = data_plane
        self._gateway = gateway or control
        self._is_for_gateway = is_for_gateway
        self._begin_in_gateway = begin_in_gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and raw_path(scope).startswith(_PREFIX):
            await self._data_plane(scope, receive, send)
        elif scope["type"] == "http" and self._is_for_gateway(scope):
            await self._gateway(scope, receive, send)
        else:
            await self._control(scope, receive, send)

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """The fast path of the data plane or the gateway, see `DataPlane.begin`; False for other paths."""
        route_cache: RouteCache | None = scope.get(ROUTE_CACHE)
        begin: Begin | None
        if route_cache is not None and "begin" in route_cache:
            begin = route_cache["begin"]
        else:
            begin = self._begin_of(scope)
            if route_cache is not None:
                route_cache["begin"] = begin
        return begin is not None and begin(scope, body, channel, resume_as_task)

    def _begin_of(self, scope: Scope) -> Begin | None:
        if raw_path(scope).startswith(_PREFIX):
            return self._data_plane.begin
        return self._begin_in_gateway if self._is_for_gateway(scope) else None


def raw_path(scope: Scope) -> bytes:
    """The path as sent by the client, without the prefix that a proxy in front of us has added."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    root: str = scope.get("root_path", "")
    return path.removeprefix(root.encode()) if root else path


def split_proxy_path(path: bytes, query: bytes) -> tuple[str, bytes]:
    """Instance id and the engine's request target in `/proxy/{id}/{path}`, the latter unchanged."""
    instance, slash, rest = path.removeprefix(b"/proxy/").partition(b"/")
    target = slash + rest if slash else b"/"
    if query:
        target += b"?" + query
    if b"%" in instance:
        instance = unquote_to_bytes(instance)
    return instance.decode("utf-8", "replace"), target
