"""Answers to HTTP/1.0, whose clients know no chunks: what has no length ends with its connection.

uvicorn's protocol, less one thing it does. nginx asks by HTTP/1.0 unless it is told otherwise.
"""

from __future__ import annotations

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class Http10Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=…)`."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.waiting_for_100_continue = False  # interim answers are HTTP/1.1's
            app = _unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)


def _unchunked(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        ends_by_close = False

        async def send_unchunked(message: ASGISendEvent) -> None:
            nonlocal ends_by_close
            if message["type"] == "http.response.start":
                ends_by_close = all(
                    name.lower() != b"content-length" for name, _ in message.get("headers", ())
                )
                if ends_by_close:
                    cycle.chunked_encoding = False
            elif message["type"] == "http.response.body" and ends_by_close:
                cycle.expected_content_length = len(message.get("body", b""))  # as if this were all
            await send(message)

        await app(scope, receive, send_unchunked)

    return application
