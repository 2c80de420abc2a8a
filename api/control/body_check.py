"""Refuses control routes' bodies with values that are never valid, naming the field, before parsing."""

from __future__ import annotations

from api.control.body_faults import find_fault
from api.control.body_limit import MAX_BYTES
from api.http.asgi import App, Receive, Scope, Send
from api.http.buffered_body import buffer_body
from api.http.client_errors import ClientGone
from api.http.dialects import in_dialect
from api.http.dispatch import raw_path
from api.http.errors import api_error
from api.http.off_loop import off_loop
from api.http.respond import send_response


class BodyCheck:
    """An ASGI middleware inside `BodyLimit`; refuses with 422."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            buffered = await buffer_body(receive, MAX_BYTES)
        except ClientGone:
            return
        body = buffered.body or b""
        fault = await off_loop(len(body), lambda: find_fault(body)) if body else None
        if fault is None:
            await self._app(scope, buffered.replay, send)
            return
        message = f"{fault.field or 'the body'} {fault.problem}"
        error = api_error(422, message, "invalid_request_error", param=fault.field or None)
        error = in_dialect(error, raw_path(scope), b"")
        await send_response(send, error.status, error.headers, error.body)
