"""Middleware in front of every route: request ids, API keys, readiness and the count of active requests.

Plain ASGI: the only cost per chunk of a stream is one comparison of the message type.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import EngineError
from engine.server.http.client_disconnect import set_client
from engine.server.http.errors import InvalidApiKey, NotReady, ShuttingDown, error_response, speaks_anthropic
from engine.server.http.request_ids import set_request_id
from engine.server.http.request_log import RequestRecord, begin_record
from engine.server.http.tenants import (
    DEFAULT_TENANT,
    TENANT_HEADER,
    Tenant,
    set_tenant,
    tenant_of_header,
    tenant_of_key,
)
from engine.server.model.model_service import ModelService
from engine.server.protocol.unknown_fields import IgnoredFields, collect_ignored

_OPEN_PATHS = frozenset({"/health", "/ping", "/version"})
_ALWAYS_SERVED_PATHS = _OPEN_PATHS | {"/metrics", "/load", "/openapi.json", "/docs"}
_LOGGED_PATH_CHARS = 200
_REQUEST_ID = re.compile(r"[!-~]{1,256}")


class RequestMiddleware:
    """The outermost app. Counts active requests, so that a shutdown can wait for them."""

    def __init__(self, app: ASGIApp, service: ModelService) -> None:
        self.app = app
        self._service = service
        self._keys = [key.encode() for key in service.config.api_keys]
        berth_key = service.config.berth_key
        self._berth_key = None if berth_key is None else berth_key.encode()
        self._refuses_unknown = service.config.unknown_fields == "refuse"
        self._num_active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = self._begin_record(scope)
        ignored = collect_ignored(refuses_unknown=self._refuses_unknown)
        send = _add_headers(scope, send, ignored, record)
        try:
            set_tenant(self._authorize(scope))
            set_client(receive)
        except EngineError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            if record is not None:
                record.log()
            return
        self._num_active += 1
        self._idle.clear()
        try:
            await self.app(scope, receive, send)
        finally:
            self._num_active -= 1
            if not self._num_active:
                self._idle.set()
            if record is not None:
                record.log()

    @property
    def is_idle(self) -> bool:
        return self._idle.is_set()

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def _begin_record(self, scope: Scope) -> RequestRecord | None:
        """None for read-only requests: probes and scrapes arrive every few seconds."""
        wanted = self._service.config.log_requests
        if not wanted or scope["method"] == "GET" or scope["path"] in _ALWAYS_SERVED_PATHS:
            return None
        path = scope.get("raw_path") or scope["path"].encode()
        return begin_record(f"{scope['method']} {quote(path, safe='/%:')[:_LOGGED_PATH_CHARS]}")

    def _authorize(self, scope: Scope) -> Tenant:
        """The tenant of the request. Raises EngineError if the request is refused."""
        path = scope["path"]
        headers = Headers(scope=scope)
        key = self._matching_key(headers) if self._keys else None
        if self._keys and path not in _OPEN_PATHS and key is None:
            raise InvalidApiKey(
                "Invalid or missing API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
            )
        if path in _ALWAYS_SERVED_PATHS or self._service.is_ready:
            return self._tenant_of(key, headers)
        if self._service.draining:
            raise ShuttingDown("The server is shutting down.")
        raise NotReady("The model is still loading, or the engine has stopped.")

    def _tenant_of(self, key: bytes | None, headers: Headers) -> Tenant:
        """Only a request with Berth's own key may name its tenant in a header."""
        if key is None:
            return DEFAULT_TENANT
        if key == self._berth_key:
            return tenant_of_header(headers.get(TENANT_HEADER, ""))
        return tenant_of_key(key)

    def _matching_key(self, headers: Headers) -> bytes | None:
        """Compares with every key in constant time. Anthropic's clients send theirs as x-api-key."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
        matches = [(hmac.compare_digest(value.encode(), key), key) for value in given for key in self._keys]
        return next((key for is_equal, key in matches if is_equal), None)


def _add_headers(scope: Scope, send: Send, ignored: IgnoredFields, record: RequestRecord | None) -> Send:
    """Add the request id to the response, and a `Warning` that lists ignored fields."""
    given = Headers(scope=scope).get("x-request-id", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    scope.setdefault("state", {})["request_id"] = request_id
    set_request_id(request_id, is_final=request_id == given)

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = request_id
            if speaks_anthropic(scope["path"]):
                headers["request-id"] = request_id  # what Anthropic's SDKs read
            if ignored.header is not None:
                headers["warning"] = ignored.header
            if record is not None:
                record.status = message["status"]
        await send(message)

    return send_with_headers
