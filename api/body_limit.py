"""The control routes take short bodies, which are read whole: no longer ones, and none that nobody means."""

from __future__ import annotations

from api.asgi import App, Receive, Scope, Send
from api.body_check import find_fault
from api.body_peek import peek
from api.errors import ApiError, api_error
from api.leases import ClientGone
from api.off_loop import off_loop

MAX_BYTES = 2**20


class BodyLimit:
    """An ASGI middleware: 413 for a body of more than `max_bytes`, 422 for one that nobody could mean."""

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
        body = peeked.body
        if body is None:
            message = f"the body is longer than the {self._max_bytes >> 10} KiB that this route takes"
            error = api_error(413, message, "invalid_request_error", code="body_too_large")
            await _refuse(send, error, (b"connection", b"close"))
        elif body and (fault := await off_loop(len(body), lambda: find_fault(body))) is not None:
            message = f"{fault.field or 'the body'} {fault.problem}"
            param = fault.field or None
            await _refuse(send, api_error(422, message, "invalid_request_error", param=param))
        else:
            await self._app(scope, peeked.replay, send)


async def _refuse(send: Send, error: ApiError, *more_headers: tuple[bytes, bytes]) -> None:
    headers = [*error.headers, *more_headers]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.body})
