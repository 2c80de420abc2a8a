"""HEAD for every GET route: the same head without a body (RFC 9110, section 9.3.2).

FastAPI's routes accept only the methods they name. The GET route runs instead and is ended after its head, so
that a HEAD of an endless stream ends too.
"""

from __future__ import annotations

from api.http.asgi import App, Message, Receive, Scope, Send

_ACTING = "/unload"  # the GET that changes something, for llama-swap's scripts: a HEAD of it is 405


class HeadRequests:
    """An ASGI middleware that runs HEAD requests as GET and drops the body."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"] == _ACTING:
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # The response is complete now, so `receive` reports a disconnect to a streaming route.
                await send({"type": "http.response.body"})

        await self._app({**scope, "method": "GET"}, receive, send_head)
