"""Responses to HTTP/1.0 clients, which cannot read chunks and keep a connection only if both sides agree.

uvicorn chunks every response without a length, and never keeps the connection. Here the end of the connection
ends such a response (RFC 9112, sections 6.3 and 9.3). Built on uvicorn's internals, like fast_http.py.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.http.asgi import App, Message, RawHeaders, Receive, Scope, Send

KEEP_ALIVE = (b"connection", b"keep-alive")


def is_for(cycle: RequestResponseCycle) -> bool:
    """Whether the request is HTTP/1.0."""
    return cycle.scope["http_version"] == "1.0"


def prepare(cycle: RequestResponseCycle) -> None:
    """Before anything is sent: decide whether to keep the connection, and suppress interim responses."""
    asked = b",".join(value for name, value in cycle.scope["headers"] if name == b"connection")
    options = {option.strip() for option in asked.lower().split(b",")}
    cycle.keep_alive = b"keep-alive" in options and b"close" not in options
    cycle.waiting_for_100_continue = False  # HTTP/1.0 has no interim responses


def unchunked(app: App, cycle: RequestResponseCycle) -> App:
    """Wrap `app` so that `cycle` sends its response as HTTP/1.0 requires."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        ends_by_close = False

        async def send_unchunked(message: Message) -> None:
            nonlocal ends_by_close
            if message["type"] == "http.response.start":
                headers = message["headers"]
                ends_by_close = not _has_known_end(cycle, message["status"], headers)
                if ends_by_close:
                    cycle.keep_alive = cycle.chunked_encoding = False
                elif cycle.keep_alive and not any(name == b"connection" for name, _ in headers):
                    message = {**message, "headers": [*headers, KEEP_ALIVE]}
            elif ends_by_close:
                cycle.expected_content_length = len(
                    message.get("body", b"")
                )  # as if this were the whole body
            await send(message)

        await app(scope, receive, send_unchunked)

    return application


def _has_known_end(cycle: RequestResponseCycle, status: int, headers: RawHeaders) -> bool:
    """Whether the head alone determines where the response ends."""
    is_bodiless = cycle.scope["method"] == "HEAD" or status in (204, 304)
    return is_bodiless or any(name == b"content-length" for name, _ in headers)
