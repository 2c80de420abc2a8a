"""Limits the control routes' bodies, which are read whole."""

from __future__ import annotations

from api.http.asgi import App, Receive, Scope, Send
from api.http.buffered_body import buffer_body
from api.http.client_errors import ClientGone
from api.http.dialects import in_dialect
from api.http.dispatch import raw_path
from api.http.errors import ApiError, RequestRefused, api_error
from api.http.respond import send_response
from api.server.content_coding import decoded

MAX_BYTES = 2**20


class BodyLimit:
    """An ASGI middleware that decodes bodies, and refuses those over `max_bytes` with 413."""

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
            scope, receive = await decoded(scope, receive, self._max_bytes)
            buffered = await buffer_body(receive, self._max_bytes)
        except ClientGone:
            return
        except RequestRefused as refused:
            await self._refuse(scope, send, refused.error)
            return
        if buffered.body is not None:
            await self._app(scope, buffered.replay, send)
            return
        message = f"the body exceeds {self._max_bytes >> 10} KiB, the limit of this route; send a smaller one"
        error = api_error(413, message, "invalid_request_error", code="body_too_large")
        await self._refuse(scope, send, error)

    async def _refuse(self, scope: Scope, send: Send, error: ApiError) -> None:
        error = in_dialect(error, raw_path(scope), b"")
        headers = [*error.headers, (b"connection", b"close")]
        await send_response(send, error.status, headers, error.body)
