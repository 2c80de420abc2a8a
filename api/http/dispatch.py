"""Routes requests by path alone."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import unquote_to_bytes

from api.http.asgi import App, Scope
from api.http.response_channel import Handler
from api.http.route import RoutedApp, Router

CLIENT_PATH = "berth.client_path"  # in the scope of a translated request

_PREFIX = b"/proxy/"
_BY_NAME = b"/upstream/"


class ModelRouter(Router, Protocol):
    """The part for requests that name a model."""

    def is_for(self, scope: Scope) -> bool: ...


class Dispatcher(RoutedApp):
    """`data_plane` gets http and websocket under /proxy/, `by_name` under /upstream/, `models` what it is
    for, `control` the rest."""

    def __init__(
        self,
        control: App,
        data_plane: Router,
        models: ModelRouter | None = None,
        by_name: Router | None = None,
    ) -> None:
        self._control = Handler(control)
        self._data_plane = data_plane
        self._models = models
        self._by_name = by_name

    def route(self, scope: Scope) -> Handler:
        if scope["type"] != "lifespan" and raw_path(scope).startswith(_PREFIX):
            return self._data_plane.route(scope)
        if scope["type"] == "http" and self._models is not None and self._models.is_for(scope):
            return self._models.route(scope)
        if self._by_name is not None and scope["type"] != "lifespan" and raw_path(scope).startswith(_BY_NAME):
            return self._by_name.route(scope)
        return self._control


def raw_path(scope: Scope) -> bytes:
    """The path as sent by the client, without the prefix that a proxy in front of us has added."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    root: str = scope.get("root_path", "")
    return path.removeprefix(root.encode()) if root else path


def client_path(scope: Scope) -> bytes:
    """The same, also of a request that an adapter has translated."""
    path: bytes = scope.get(CLIENT_PATH) or raw_path(scope)
    return path


def split_proxy_path(path: bytes, query: bytes) -> tuple[str, bytes]:
    """Instance id and the engine's request target in `/proxy/{id}/{path}`, the latter unchanged."""
    instance, slash, rest = path.removeprefix(b"/proxy/").partition(b"/")
    target = slash + rest if slash else b"/"
    if query:
        target += b"?" + query
    if b"%" in instance:
        instance = unquote_to_bytes(instance)
    return instance.decode("utf-8", "replace"), target
