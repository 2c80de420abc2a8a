"""Access control: API keys, and without keys only callers on this machine.

Wraps the whole application as a raw ASGI application. Keys reach no engine and no log: the proxy replaces
their headers, and nothing here is printed.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache, partial
from urllib.parse import urlsplit

from api.access.engine_routes import SAFE_METHODS, RequestRoutes
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
from api.http.dispatch import raw_path, split_proxy_path
from api.http.errors import ApiError, api_error
from api.http.headers import KEY_HEADERS, find_header, key_in_subprotocols
from api.http.respond import refuse_handshake, request_id_of, send_error
from api.http.response_channel import Handler, ResponseChannel, ResumeAsTask
from api.http.route import RoutedApp, Router
from api.telemetry.access_log import log_answered

_ENGINES = RequestRoutes()

_POLICY_VIOLATION = 1008  # a WebSocket close code
_BY_NAME = b"/upstream/"
_UNLOAD = b"/unload"  # the one GET that stops something
_FETCH_SITE = b"sec-fetch-site"  # the origin of a browser's request; pages cannot forge it
_OWN_PAGES = (b"", b"same-origin", b"none")  # not a browser, a page of Berth's own, or a typed address


class AccessControl(RoutedApp):
    """An ASGI application that passes permitted requests to `app` and refuses the others."""

    def __init__(
        self,
        app: Router,
        keys: Keys | KeyStore,
        *,
        inference_paths: frozenset[bytes] = frozenset(),
        read_paths: frozenset[bytes] = frozenset(),
        names_served_by: Callable[[str], tuple[str, ...]] = lambda _instance_id: (),
        on_refused: Callable[[str, int], None] = lambda _method, _status: None,
        origins: Origins | None = None,
        request_routes: RequestRoutes = _ENGINES,
    ) -> None:
        """`inference_paths`: paths for request keys besides `/v1/…`, `/proxy/…` and `/upstream/…`.

        `read_paths`: further ones, for reading only; one that ends in a slash: everything below.
        `names_served_by`: the names of an instance's model, for keys limited to some models.
        `on_refused` is called with the method and status of each refused request.
        `origins`: pages of these, in a browser on this machine, may send requests to engines without a key.
        `request_routes`: the engines' routes that request keys may use.
        """
        self._app = app
        self._inference_paths = inference_paths
        self._read_paths = read_paths
        self._names_served_by = names_served_by
        self._on_refused = on_refused
        self._origins = origins
        self._request_routes = request_routes
        self._key_store = keys if isinstance(keys, KeyStore) else KeyStore(keys)

    def route(self, scope: Scope) -> Handler:
        error = None if scope["type"] == "lifespan" else self._refusal(scope)
        if error is not None:
            return Handler(partial(self._refuse, error), lasts=False)
        return _Permitted(self._key_store, caller_of(scope), self._app.route(scope))

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        self._on_refused(scope.get("method", "WEBSOCKET"), error.status)
        request_id = request_id_of(scope)
        log_answered(scope, error.status, time.perf_counter(), request_id, "access denied")
        if scope["type"] == "websocket":
            await receive()
            await refuse_handshake(scope, send, error, request_id, _POLICY_VIOLATION)
            return
        await send_error(send, error, raw_path(scope), request_id)

    def _refusal(self, scope: Scope) -> ApiError | None:
        required = required_access(
            raw_path(scope),
            self._inference_paths,
            method=scope.get("method", "POST"),  # a WebSocket has none, and may carry anything
            routes=self._request_routes,
            read_paths=self._read_paths,
        )
        if required is Access.OPEN:
            return None
        if caller_of(scope).access >= required:
            return None  # already checked by the fast path
        ring = self._key_store.ring
        keys = [] if ring.is_empty else _keys_in(scope)
        caller = max(map(ring.find, keys), key=lambda found: found.access, default=ANONYMOUS)
        if caller.access < required and not ring.has_admin and self._is_local(scope):
            caller = LOCAL
        elif self._is_allowed_page(scope):
            caller = PAGE
        if caller.access < required:
            return self._denial(scope, caller.access, bool(keys))
        refusal = self._over_limits(scope, caller)
        if refusal is None:
            set_caller(scope, caller)
        return refusal

    def _is_local(self, scope: Scope) -> bool:
        """Whether the client is on this machine, possibly following a link on a page of another origin."""
        headers: RawHeaders = scope["headers"]
        if _is_link(headers) and scope.get("method") == "GET" and not self._is_forwarded(raw_path(scope)):
            headers = [pair for pair in headers if pair[0] != _FETCH_SITE]
        return is_local(scope.get("client"), headers)

    def _is_forwarded(self, path: bytes) -> bool:
        """Whether a path leads to engines, which a link must not start, wake, use or stop."""
        leads = path.startswith((b"/proxy/", b"/v1/", _BY_NAME)) or path in self._inference_paths
        return leads or path == _UNLOAD

    def _is_allowed_page(self, scope: Scope) -> bool:
        """Whether, without keys, a browser on this machine sends this for a page of an allowed origin.

        Such a page never gets admin access: anyone who can edit it could run commands here.
        """
        if self._origins is None or not self._key_store.ring.is_empty:
            return False
        allow = self._origins.allow
        headers: RawHeaders = [pair for pair in scope["headers"] if pair[0] != _FETCH_SITE]
        rest = [pair for pair in headers if pair[0] != b"origin" or not allow(pair[1])]
        return len(rest) < len(headers) and is_local(scope.get("client"), rest)

    def _over_limits(self, scope: Scope, caller: Caller) -> ApiError | None:
        """Check rate and, for /proxy/, model; the gateway checks the model named in a body."""
        path = raw_path(scope)
        if caller.models is not None and path.startswith(b"/proxy/"):
            instance_id, _ = split_proxy_path(path, b"")
            if not caller.may_use(self._names_served_by(instance_id)):
                return model_not_allowed(instance_id)
        if caller.rate is not None and (wait_s := caller.rate.take_token()):
            return rate_limited(wait_s)
        return None

    def _denial(self, scope: Scope, granted: Access, has_key: bool) -> ApiError:
        if granted is Access.INFERENCE and self._key_store.ring.is_empty:
            message = "pages of other origins may only send requests to engines; for more, set ADMIN_API_KEYS"
            return api_error(403, message, "permission_error", code="admin_key_required")
        if granted is Access.INFERENCE:
            message = (
                "this key may only send requests to engines; use one of ADMIN_API_KEYS, "
                "or add the engine's route to REQUEST_PATHS"
            )
            return api_error(403, message, "permission_error", code="admin_key_required")
        if self._key_store.ring.is_empty and find_header(scope["headers"], _FETCH_SITE) not in _OWN_PAGES:
            message = (
                "request from a web page of another origin; without API keys Berth accepts only pages of "
                "ALLOWED_ORIGINS, and only requests with an Origin header"
            )
            return api_error(403, message, "permission_error", code="other_origin")
        if self._key_store.ring.is_empty:
            message = (
                "without API keys Berth accepts requests only from its own machine, addressed to localhost; "
                "set API_KEYS and ADMIN_API_KEYS (see env.example) for access from other machines"
            )
            return api_error(403, message, "permission_error", code="no_api_keys_set")
        problem = "unknown API key" if has_key else "no API key given"
        message = f"{problem}; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        error = api_error(401, message, "authentication_error", code="invalid_api_key")
        error.headers.append((b"www-authenticate", b"Bearer"))
        return error


class _Permitted(Handler):
    """A caller's requests with one head, as long as the keys are the same and it has no limits."""

    __slots__ = ("_caller", "_handler", "_keys", "_ring")

    def __init__(self, keys: KeyStore, caller: Caller, handler: Handler) -> None:
        super().__init__(handler)
        self._keys = keys
        self._ring = keys.ring
        self._caller = caller
        self._handler = handler

    def holds(self) -> bool:
        caller = self._caller
        is_unlimited = caller.models is None and caller.rate is None
        return is_unlimited and self._ring is self._keys.ring and self._handler.holds()

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        set_caller(scope, self._caller)
        return self._handler.begin(scope, body, channel, resume_as_task)


def required_access(
    path: bytes,
    inference_paths: frozenset[bytes] = frozenset(),
    *,
    method: str = "POST",
    routes: RequestRoutes = _ENGINES,
    read_paths: frozenset[bytes] = frozenset(),
) -> Access:
    """The access that a path (as sent by the client) requires.

    `routes`: the engines' routes for request keys. Below `/upstream/` the gateway checks them: it knows where
    a model's name ends.
    """
    if path == b"/health" or path.startswith(b"/health/") or (path == b"/" and method in ("GET", "HEAD")):
        return Access.OPEN
    if path.startswith(_BY_NAME):
        return Access.INFERENCE
    if method in SAFE_METHODS and _is_below(path, read_paths):
        return Access.INFERENCE
    if path.startswith(b"/proxy/"):
        _, _, forwarded = path.removeprefix(b"/proxy/").partition(b"/")
    elif path.startswith(b"/v1/"):
        forwarded = path
    else:
        return Access.INFERENCE if path in inference_paths else Access.ADMIN
    return Access.INFERENCE if routes.has(forwarded, method) else Access.ADMIN


def _is_below(path: bytes, paths: frozenset[bytes]) -> bool:
    return path in paths or any(path.startswith(one) for one in paths if one.endswith(b"/"))


def is_local(client: tuple[str, int] | None, headers: RawHeaders) -> bool:
    """Whether a request comes from this machine, and not on behalf of a third party.

    A page that a browser has loaded from another site is a third party: it shows in `Sec-Fetch-Site`, in
    `Origin` or, if its name was made to resolve to us, in `Host`. So is a reverse proxy's client.
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
            return False  # requests for images, for example, have no `Origin`
    return True


def _is_link(headers: RawHeaders) -> bool:
    """Whether the user follows a link to a page of Berth's: the linking page can't read the response."""
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
    """Every key in a request: some clients send a dummy key besides the real one."""
    # The first of each header.
    given = {name: value for name, value in reversed(scope["headers"]) if name in KEY_HEADERS}
    scheme, _, bearer = given.pop(b"authorization", b"").partition(b" ")
    keys = [bearer.strip() if scheme.lower() == b"bearer" else b"", *map(bytes.strip, given.values())]
    keys.append(key_in_subprotocols(scope.get("subprotocols", ())))
    return [key for key in keys if key]
