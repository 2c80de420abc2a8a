"""Which paths name a model in their body, and which of their requests may take the fast path."""

from __future__ import annotations

from api.gateway.gateway import Gateway
from api.http.asgi import App, Scope
from api.http.dispatch import raw_path
from api.http.response_channel import Handler


class ModelRoutes:
    """The gateway's paths, and those of protocols that are translated to OpenAI's."""

    def __init__(
        self, gateway: Gateway, app: App, translated: frozenset[bytes], *, has_fast_path: bool
    ) -> None:
        """`app` leads to the gateway. `has_fast_path`: False if something in it must see every request."""
        self._gateway = gateway
        self._app = app
        self._translated = translated
        self._has_fast_path = has_fast_path

    def is_for(self, scope: Scope) -> bool:
        return Gateway.is_for(scope) or raw_path(scope) in self._translated

    def route(self, scope: Scope) -> Handler:
        if not self._has_fast_path or raw_path(scope) in self._translated:
            return Handler(self._app)
        return self._gateway.handler(scope, self._app)
