"""What serves a request, decided from its head alone: once, for the fast path and for ASGI alike.

Each application in front of the engines has `route`, and no second way in: so none of them can be passed by,
and none can lose the fast path without saying so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from api.http.asgi import Receive, Scope, Send
from api.http.head_cache import ROUTE_CACHE, RouteCache
from api.http.response_channel import Handler, ResponseChannel, ResumeAsTask


class Router(Protocol):
    """Finds what serves a request."""

    def route(self, scope: Scope) -> Handler: ...


class RoutedApp(ABC):
    """An ASGI application with a fast path; both serve what `route` decides."""

    @abstractmethod
    def route(self, scope: Scope) -> Handler:
        """What serves the request. Reads the head only."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.route(scope)(scope, receive, send)

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """As `FastPathApp.begin`. Only the outermost application's is called."""
        cache: RouteCache | None = scope.get(ROUTE_CACHE)
        handler: Handler | None = None if cache is None else cache.handler
        if handler is None or not handler.holds():
            handler = self.route(scope)
            if cache is not None:
                cache.handler = handler
        return handler.begin(scope, body, channel, resume_as_task)
