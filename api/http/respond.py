"""Sends whole responses and errors by raw ASGI, and refuses WebSocket handshakes."""

from __future__ import annotations

from api.http.asgi import RawHeaders, Scope, Send
from api.http.dialects import in_dialect
from api.http.errors import ApiError
from api.http.headers import find_header, sane_request_id


def request_id_of(scope: Scope) -> bytes:
    """The client's request id, or a new one each time it is called."""
    return sane_request_id(find_header(scope["headers"], b"x-request-id"))


async def send_response(send: Send, status: int, headers: RawHeaders, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, target: bytes, request_id: bytes) -> None:
    """Send an error in the format of the API that `target` belongs to."""
    error = in_dialect(error, target, request_id)
    await send_response(send, error.status, [*error.headers, (b"x-request-id", request_id)], error.body)


async def refuse_handshake(
    scope: Scope, send: Send, error: ApiError, request_id: bytes, close_code: int
) -> None:
    """Refuse a WebSocket with a status and error body, or by `close_code` if the server can't do that."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": close_code})
        return
    headers = [*error.headers, (b"x-request-id", request_id)]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": error.body})
