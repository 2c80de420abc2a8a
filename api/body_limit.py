"""The control routes take short bodies, which are read whole: longer ones are refused before."""

from __future__ import annotations

from api.asgi import App, Receive, Scope, Send
from api.body_peek import peek
from api.errors import api_error
from api.leases import ClientGone

MAX_BYTES = 2**20


class BodyLimit:
    """An ASGI middleware that answers 413 to a body of more than `max_bytes`."""

    def __init__(self, app: App, max_bytes: int = MAX_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
        ):
            await self._app(scope, receive, send)
            return
        try:
            peeked = await peek(receive, self._max_bytes)
        except ClientGone:
            return
        if peeked.body is not None:
            await self._app(scope, peeked.replay, send)
            return
        message = f"the body is longer than the {self._max_bytes >> 10} KiB that this route takes"
        error = api_error(413, message, "invalid_request_error", code="body_too_large")
        headers = [*error.headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": error.body})
