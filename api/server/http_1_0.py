"""Answers to HTTP/1.0: such a client knows no chunks, and stays connected only where both sides say so.

uvicorn chunks every answer without a length, and never stays. Here an answer without a length ends where its
connection does (RFC 9112, sections 6.3 and 9.3). Built on uvicorn's internals, as api/server/fast_http.py is.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.http.asgi import App, Message, RawHeaders, Receive, Scope, Send

KEEP_ALIVE = (b"connection", b"keep-alive")


def is_for(cycle: RequestResponseCycle) -> bool:
    """Whether the request came as HTTP/1.0."""
    return cycle.scope["http_version"] == "1.0"


def prepare(cycle: RequestResponseCycle) -> None:
    """Settle, before anything is answered, whether the client stays, and that nothing precedes the answer."""
    asked = b",".join(value for name, value in cycle.scope["headers"] if name == b"connection")
    options = {option.strip() for option in asked.lower().split(b",")}
    cycle.keep_alive = b"keep-alive" in options and b"close" not in options
    cycle.waiting_for_100_continue = False  # interim answers are HTTP/1.1's


def unchunked(app: App, cycle: RequestResponseCycle) -> App:
    """`app`, whose answer goes out by `cycle` as HTTP/1.0 has it."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        ends_by_close = False

        async def send_unchunked(message: Message) -> None:
            nonlocal ends_by_close
            if message["type"] == "http.response.start":
                headers = message["headers"]
                ends_by_close = not _tells_its_end(cycle, message["status"], headers)
                if ends_by_close:
                    cycle.keep_alive = cycle.chunked_encoding = False
                elif cycle.keep_alive and not any(name == b"connection" for name, _ in headers):
                    message = {**message, "headers": [*headers, KEEP_ALIVE]}
            elif ends_by_close:
                cycle.expected_content_length = len(message.get("body", b""))  # as if this were all
            await send(message)

        await app(scope, receive, send_unchunked)

    return application


def _tells_its_end(cycle: RequestResponseCycle, status: int, headers: RawHeaders) -> bool:
    """Whether the client knows from the head alone where the answer ends."""
    is_bodiless = cycle.scope["method"] == "HEAD" or status in (204, 304)
    return is_bodiless or any(name == b"content-length" for name, _ in headers)
