"""HTTP/1.0 support: its clients do not know chunks, so a body without a length ends with the connection.

uvicorn always sends chunks. nginx proxies with HTTP/1.0 by default.
"""

from __future__ import annotations

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class Http10Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=…)`."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.waiting_for_100_continue = False  # interim responses need HTTP/1.1
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
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
                cycle.expected_content_length = len(
                    message.get("body", b"")
                )  # so that uvicorn accepts a body of unknown length
            await send(message)

        await app(scope, receive, send_unchunked)

    return application
