"""CORS: which pages of other origins may use Berth from a browser, and the headers for it.

Wraps the whole application if ALLOWED_ORIGINS is set. Engines' own CORS headers are then dropped. It grants
no access: api/auth.py comes after it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from functools import lru_cache, partial

from api.http.asgi import App, Message, RawHeaders, Receive, Scope, Send
from api.http.headers import find_header
from api.http.respond import request_id_of, send_response
from api.http.response_channel import EXTENSION, Handler, ResponseChannel, ResumeAsTask
from api.http.route import RoutedApp, Router
from api.telemetry.access_log import log_answered

_ANY = "*"
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
# Listed for browsers that do not understand `*`, which covers engines' own headers.
_EXPOSED = (
    b"*, x-request-id, request-id, retry-after, location, warning, www-authenticate, x-berth-cache, "
    b"content-encoding, traceparent"
)
_MAX_AGE_S = b"7200"  # the longest that most browsers cache it
_PREFIX = b"access-control-"
_NAME = re.compile(r"([^:]*)://(.*?)(?::([0-9]+|\*))?")
_HOST = r"(?:\[[0-9a-f:.]+\]|[^/@:\[\]]+)"
_BELOW = r"[^/@:\[\]]+\."


class Origins:
    """The allowed origins: exact ones, and patterns as described in configs/origins.py."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """`allowed`: normalized."""
        names = tuple(allowed)
        self.is_any = _ANY in names
        pattern = re.compile("|".join(_as_regex(name) for name in names if name != _ANY) or r"(?!)")
        self._matches = lru_cache(maxsize=1024)(lambda origin: pattern.fullmatch(origin) is not None)

    def allow(self, origin: bytes) -> bool:
        """Whether a page of this origin may use Berth."""
        return bool(origin) and (self.is_any or self._matches(origin.decode("latin-1").lower()))

    def answer(self, headers: RawHeaders, origin: bytes) -> RawHeaders:
        """A response's headers with CORS for a page of this origin."""
        kept = [pair for pair in headers if not pair[0].startswith(_PREFIX)]
        if self.allow(origin):
            kept += (
                (b"access-control-allow-origin", self._allowed_origin(origin)),
                (b"access-control-expose-headers", _EXPOSED),
            )
        if not self.is_any:
            kept.append((b"vary", b"origin"))
        return kept

    def preflight(self, headers: RawHeaders, origin: bytes) -> RawHeaders:
        """The response to a preflight. Echoes the requested headers, as `*` excludes Authorization."""
        answer = [
            (b"access-control-allow-origin", self._allowed_origin(origin)),
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", _MAX_AGE_S),
            (b"vary", b"origin, access-control-request-method, access-control-request-headers"),
        ]
        if asked := find_header(headers, b"access-control-request-headers"):
            answer.append((b"access-control-allow-headers", asked))
        if find_header(headers, b"access-control-request-private-network") == b"true":
            answer.append((b"access-control-allow-private-network", b"true"))
        return answer

    def _allowed_origin(self, origin: bytes) -> bytes:
        return b"*" if self.is_any else origin


class Cors(RoutedApp):
    """Makes the responses of `app` readable for pages of allowed origins."""

    def __init__(self, app: Router, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    def route(self, scope: Scope) -> Handler:
        origin = find_header(scope["headers"], b"origin") if scope["type"] == "http" else b""
        if not origin:
            return self._app.route(scope)
        if _is_preflight(scope) and self._origins.allow(origin):
            return Handler(partial(self._answer_preflight, origin))
        return _ForPage(self._app.route(scope), self._origins, origin)

    async def _answer_preflight(self, origin: bytes, scope: Scope, _: Receive, send: Send) -> None:
        """Needs no key: browsers send none with a preflight."""
        request_id = request_id_of(scope)
        log_answered(scope, 204, time.perf_counter(), request_id, "preflight")
        headers = [*self._origins.preflight(scope["headers"], origin), (b"x-request-id", request_id)]
        await send_response(send, 204, headers, b"")


class _ForPage(Handler):
    """A page's requests with one head."""

    __slots__ = ("_handler", "_origin", "_origins")

    def __init__(self, handler: Handler, origins: Origins, origin: bytes) -> None:
        super().__init__(handler)
        self._handler = handler
        self._origins = origins
        self._origin = origin

    def holds(self) -> bool:
        return self._handler.holds()

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        if scope["method"] == "OPTIONS":
            return False

        def resume(app: App) -> None:
            async def application(scope: Scope, receive: Receive, send: Send) -> None:
                await app(scope, receive, self._sending(send))

            resume_as_task(application)

        return self._handler.begin(scope, body, _Channel(channel, self._origins, self._origin), resume)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = scope.get("extensions")
        if extensions and EXTENSION in extensions:
            extensions[EXTENSION] = _Channel(extensions[EXTENSION], self._origins, self._origin)
        await self._handler(scope, receive, self._sending(send))

    def _sending(self, send: Send) -> Send:
        async def send_answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = self._origins.answer(message.get("headers", []), self._origin)
                message = {**message, "headers": headers}
            await send(message)

        return send_answer


class _Channel:
    """A ResponseChannel that adds CORS headers for one origin."""

    __slots__ = ("_channel", "_origin", "_origins")

    def __init__(self, channel: ResponseChannel, origins: Origins, origin: bytes) -> None:
        self._channel = channel
        self._origins = origins
        self._origin = origin

    def is_ready(self) -> bool:
        return self._channel.is_ready()

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        self._channel.send_whole(status, self._origins.answer(headers, self._origin), body)

    def send_piece(self, body: bytes) -> bool:
        return self._channel.send_piece(body)

    def abort(self) -> None:
        self._channel.abort()

    def num_unsent(self) -> int:
        return self._channel.num_unsent()

    def cut(self) -> None:
        self._channel.cut()


def _is_preflight(scope: Scope) -> bool:
    asked = find_header(scope["headers"], b"access-control-request-method")
    return scope["method"] == "OPTIONS" and asked != b""


def _as_regex(name: str) -> str:
    found = _NAME.fullmatch(name)
    assert found is not None  # noqa: S101 - it matches every string; narrows the type
    scheme, host, port = found.groups()
    if host == "*":
        pattern = ".*" if port is None else _HOST
    else:
        pattern = (_BELOW if host.startswith("*.") else "") + re.escape(host.removeprefix("*."))
    end = "" if port is None else "(?::[0-9]+)?" if port == "*" else f":{port}"
    return f"{re.escape(scheme)}://{pattern}{end}"
