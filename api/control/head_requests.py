"""HEAD wherever there is a GET: the same head, and no body (RFC 9110, section 9.3.2).

FastAPI's routes know only the methods that they name. A GET is run in the HEAD's stead; what it would stream
is ended with its head, so that a HEAD of something endless ends too.
"""

from __future__ import annotations

from api.http.asgi import App, Message, Receive, Scope, Send


class HeadRequests:
    """An ASGI middleware that asks `app` to GET what is to be looked at by HEAD."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # Now it is complete, so `receive` tells whoever streams that nobody listens.
                await send({"type": "http.response.body"})

        await self._app({**scope, "method": "GET"}, receive, send_head)
