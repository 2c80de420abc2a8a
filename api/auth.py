"""Who may ask for what: keys, and without keys the callers on this machine alone.

Stands in front of everything as a raw ASGI application. Keys reach no engine and no log: the proxy replaces
the headers they come in, and nothing here is printed.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from api.access.engine_routes import RequestRoutes
from api.access.key_store import Keys, KeyStore
from api.access.keys import (
    ANONYMOUS,
    LOCAL,
    PAGE,
    Access,
    Caller,
    caller_of,
    model_not_allowed,
    rate_limited,
    set_caller,
)
from api.cors import Origins
from api.http.asgi import RawHeaders, Receive, Scope, Send
from api.http.dialects import send_error
from api.http.dispatch import raw_path, split_proxy_path
from api.http.errors import ApiError, api_error
from api.http.head_cache import ROUTE_CACHE, RouteCache
from api.http.headers import KEY_HEADERS, find_header, key_in_subprotocols, sane_request_id
from api.http.response_channel import FastPathApp, ResponseChannel, ResumeAsTask
from api.telemetry.access_log import log_answered

_ENGINES = RequestRoutes()

_FETCH_SITE = b"sec-fetch-site"  # where a browser's request comes from, as no page can forge it
_OWN_PAGES = (b"", b"same-origin", b"none")  # no browser, a page of Berth's, or what somebody has typed


class AccessControl:
    """An ASGI application that lets through what its caller may do and answers the rest."""

    def __init__(
        self,
        app: FastPathApp,
        keys: Keys | KeyStore,
        *,
        inference_paths: frozenset[bytes] = frozenset(),
        names_served_by: Callable[[str], tuple[str, ...]] = lambda _instance_id: (),
        on_refused: Callable[[str, int], None] = lambda _method, _status: None,
        origins: Origins | None = None,
        request_routes: RequestRoutes = _ENGINES,
    ) -> None:
        """`inference_paths`: what keys for requests may ask for besides `/v1/…` and `/proxy/…`.

        `names_served_by`: what the model of an instance is called, for keys that are good for some models.
        `on_refused` is told the method and status of who was not let in.
        `origins`: whose pages, in a browser on this machine, may send requests to engines without a key.
        `request_routes`: those of engines that a key for requests is good for.
        """
        self._app = app
        self._inference_paths = inference_paths
        self._names_served_by = names_served_by
        self._on_refused = on_refused
        self._origins = origins
        self._request_routes = request_routes
        self._book = keys if isinstance(keys, KeyStore) else KeyStore(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None if scope["type"] == "lifespan" else self._refusal(scope)
        if error is None:
            await self._app(scope, receive, send)
        else:
            self._on_refused(scope.get("method", "WEBSOCKET"), error.status)
            await _refuse(scope, receive, send, error)

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """The application's short way, see `DataPlane.begin`; who may not pass is answered by ASGI."""
        return self._lets_in(scope) and self._app.begin(scope, body, channel, resume_as_task)

    def _lets_in(self, scope: Scope) -> bool:
        """Whether there is no refusal. For a caller without limits the head tells, once and for all."""
        route_cache: RouteCache | None = scope.get(ROUTE_CACHE)
        ring = self._book.ring
        if route_cache is not None and (known := route_cache.get("caller")) is not None and known[0] is ring:
            set_caller(scope, known[1])
            return True
        if self._refusal(scope) is not None:
            return False
        caller = caller_of(scope)
        if route_cache is not None and caller.models is None and caller.rate is None:
            route_cache["caller"] = ring, caller
        return True

    def _refusal(self, scope: Scope) -> ApiError | None:
        required = required_access(
            raw_path(scope),
            self._inference_paths,
            method=scope.get("method", "POST"),  # a WebSocket has none, and may carry anything
            routes=self._request_routes,
        )
        if required is Access.OPEN:
            return None
        if caller_of(scope).access >= required:
            return None  # the short way has looked already
        ring = self._book.ring
        keys = [] if ring.is_empty else _keys_in(scope)
        caller = max(map(ring.find, keys), key=lambda one: one.access, default=ANONYMOUS)
        if caller.access < required and not ring.has_admin and self._is_local(scope):
            caller = LOCAL
        elif self._is_allowed_page(scope):
            caller = PAGE
        if caller.access < required:
            return self._explain(scope, caller.access, bool(keys))
        refusal = self._over_limits(scope, caller)
        if refusal is None:
            set_caller(scope, caller)
        return refusal

    def _is_local(self, scope: Scope) -> bool:
        """Whether somebody on this machine asks, be it by a link on a page of another origin."""
        headers: RawHeaders = scope["headers"]
        if _is_link(headers) and scope.get("method") == "GET" and not self._is_forwarded(raw_path(scope)):
            headers = [pair for pair in headers if pair[0] != _FETCH_SITE]
        return is_local(scope.get("client"), headers)

    def _is_forwarded(self, path: bytes) -> bool:
        """Whether a path leads to engines, which a link could start or wake, or make do something."""
        return path.startswith((b"/proxy/", b"/v1/")) or path in self._inference_paths

    def _is_allowed_page(self, scope: Scope) -> bool:
        """Whether a browser on this machine asks for a page that the settings name, where there are no keys.

        An admin it is never: whoever may put something on such a page could run commands here.
        """
        if self._origins is None or not self._book.ring.is_empty:
            return False
        allow = self._origins.allow
        headers: RawHeaders = [pair for pair in scope["headers"] if pair[0] != _FETCH_SITE]
        rest = [pair for pair in headers if pair[0] != b"origin" or not allow(pair[1])]
        return len(rest) < len(headers) and is_local(scope.get("client"), rest)

    def _over_limits(self, scope: Scope, caller: Caller) -> ApiError | None:
        """The gateway asks `api.access.keys` about models itself: the name is in the body."""
        path = raw_path(scope)
        if caller.models is not None and path.startswith(b"/proxy/"):
            instance_id, _ = split_proxy_path(path, b"")
            if not caller.may_use(self._names_served_by(instance_id)):
                return model_not_allowed(instance_id)
        if caller.rate is not None and (wait_s := caller.rate.take()):
            return rate_limited(wait_s)
        return None

    def _explain(self, scope: Scope, granted: Access, has_key: bool) -> ApiError:
        if granted is Access.INFERENCE and self._book.ring.is_empty:
            message = "pages of other origins may send requests to engines, nothing else; set ADMIN_API_KEYS"
            return api_error(403, message, "permission_error", code="admin_key_required")
        if granted is Access.INFERENCE:
            message = (
                "this key may send requests to engines, nothing else; use one of ADMIN_API_KEYS, "
                "or name the engine's route in REQUEST_PATHS"
            )
            return api_error(403, message, "permission_error", code="admin_key_required")
        if self._book.ring.is_empty and find_header(scope["headers"], _FETCH_SITE) not in _OWN_PAGES:
            message = (
                "a web page of another origin asks; without API keys Berth answers only pages that "
                "ALLOWED_ORIGINS names, by requests that tell their Origin"
            )
            return api_error(403, message, "permission_error", code="other_origin")
        if self._book.ring.is_empty:
            message = (
                "without API keys Berth answers only callers on its own machine that name it localhost; "
                "set API_KEYS and ADMIN_API_KEYS (see env.example) to be reached from elsewhere"
            )
            return api_error(403, message, "permission_error", code="no_api_keys_set")
        problem = "this API key is not known" if has_key else "no API key given"
        message = f"{problem}; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        error = api_error(401, message, "authentication_error", code="invalid_api_key")
        error.headers.append((b"www-authenticate", b"Bearer"))
        return error


def required_access(
    path: bytes,
    inference_paths: frozenset[bytes] = frozenset(),
    *,
    method: str = "POST",
    routes: RequestRoutes = _ENGINES,
) -> Access:
    """What one must be allowed to do to ask for a path (as it came over the wire).

    `routes`: those of engines that answer one client's own request.
    """
    if path == b"/health" or path.startswith(b"/health/"):
        return Access.OPEN
    if path.startswith(b"/proxy/"):
        _, _, forwarded = path.removeprefix(b"/proxy/").partition(b"/")
    elif path.startswith(b"/v1/"):
        forwarded = path
    else:
        return Access.INFERENCE if path in inference_paths else Access.ADMIN
    return Access.INFERENCE if routes.has(forwarded, method) else Access.ADMIN


def is_local(client: tuple[str, int] | None, headers: RawHeaders) -> bool:
    """Whether a request comes from this machine, and not on behalf of somebody else.

    A page that a browser has loaded from elsewhere is somebody else: it shows in `Sec-Fetch-Site`, in
    `Origin`, or, where its name was made to point at us, in `Host`. So is whoever a reverse proxy stands
    in for.
    """
    if client is None or not _is_loopback(client[0]):
        return False
    for name, value in headers:
        if name in (b"x-forwarded-for", b"forwarded"):
            return False
        if name == b"host" and not _names_loopback(b"//" + value):
            return False
        if name == b"origin" and not _names_loopback(value):
            return False
        if name == _FETCH_SITE and value not in _OWN_PAGES:
            return False  # an image, say, has no `Origin`
    return True


def _is_link(headers: RawHeaders) -> bool:
    """Whether somebody follows a link to a page of Berth's: whoever made it sees nothing of the page."""
    given = dict(headers)
    return given.get(b"sec-fetch-mode") == b"navigate" and given.get(b"sec-fetch-dest") == b"document"


@lru_cache(maxsize=256)
def _names_loopback(url: bytes) -> bool:
    try:
        return _is_loopback(urlsplit(url.decode("latin-1")).hostname or "")
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _keys_in(scope: Scope) -> list[bytes]:
    """Every key that a request brings: some clients send a dummy besides the one they were given."""
    # Of each header the first.
    given = {name: value for name, value in reversed(scope["headers"]) if name in KEY_HEADERS}
    scheme, _, bearer = given.pop(b"authorization", b"").partition(b" ")
    keys = [bearer.strip() if scheme.lower() == b"bearer" else b"", *map(bytes.strip, given.values())]
    keys.append(key_in_subprotocols(scope.get("subprotocols", ())))
    return [key for key in keys if key]


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    request_id = sane_request_id(find_header(scope["headers"], b"x-request-id"))
    log_answered(scope, error.status, time.perf_counter(), request_id, "not let in")
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [*error.headers, (b"x-request-id", request_id)]
        await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": error.body})
        return
    await send_error(send, error, raw_path(scope), request_id)
