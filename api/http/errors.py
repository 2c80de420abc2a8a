"""Maps exceptions to HTTP: one table, one envelope (OpenAI's). Knows no web framework; both planes use it.

api/http/dialects.py converts errors for other APIs than OpenAI's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from api.http.asgi import RawHeaders
from api.http.client_errors import WrongBody
from api.http.upstream_errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRefused,
    UpstreamTimeout,
)
from instance_manager import errors as manager
from instance_manager.state.stores import errors as stores

# Exception type -> status, OpenAI's error type, seconds for `Retry-After` (None: no such header).
# The first match in the exception's method resolution order applies.
#
# A request for a stopped instance gets 409: no retry helps until it is started, and 503 would make clients
# retry. A request that waited for a start that failed gets 503 with the failure.
_TABLE: dict[type[Exception], tuple[int, str, float | None]] = {
    manager.InstanceNotFound: (404, "not_found_error", None),
    manager.ModelNotFound: (404, "not_found_error", None),
    manager.WrongRunner: (404, "not_found_error", None),
    manager.UnsupportedModel: (422, "invalid_request_error", None),
    manager.InstanceExists: (409, "conflict_error", None),
    manager.WrongState: (409, "conflict_error", None),
    manager.SleepFailed: (502, "upstream_error", None),
    manager.InstanceNotRunning: (409, "conflict_error", None),
    manager.IdempotencyKeyReused: (422, "invalid_request_error", None),
    manager.InvalidSpec: (422, "invalid_request_error", None),
    manager.InvalidCatalog: (422, "invalid_request_error", None),
    manager.InvalidKeyFile: (422, "invalid_request_error", None),
    manager.QueueFull: (429, "rate_limit_error", 1.0),
    manager.InstanceFailedToStart: (503, "service_unavailable_error", None),
    manager.StartTooSlow: (503, "service_unavailable_error", 10.0),
    manager.NoCapacity: (503, "service_unavailable_error", 10.0),
    manager.OwnerUnreachable: (503, "service_unavailable_error", 10.0),
    manager.ShuttingDown: (503, "service_unavailable_error", 5.0),
    stores.StoreUnavailable: (503, "service_unavailable_error", 5.0),
    stores.StoreInUse: (409, "conflict_error", None),
    stores.Conflict: (409, "conflict_error", None),
    stores.PortHeld: (409, "conflict_error", None),
    stores.LeaseLost: (409, "conflict_error", None),
    manager.ManagerError: (500, "internal_error", None),
    WrongBody: (400, "invalid_request_error", None),
    UpstreamRefused: (502, "upstream_error", None),
    UpstreamBroken: (502, "upstream_error", None),
    UpstreamInvalidResponse: (502, "upstream_error", None),
    UpstreamTimeout: (504, "timeout_error", None),
    UpstreamError: (502, "upstream_error", None),
}


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error response."""

    status: int
    body: bytes
    headers: RawHeaders
    message: str  # also part of the body


class RequestRefused(Exception):
    """A request is not served; `error` is the response."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def envelope(message: str, error_type: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """OpenAI's error object as JSON."""
    error = {"message": message, "type": error_type, "param": param, "code": code}
    return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


def api_error(
    status: int,
    message: str,
    error_type: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_s: float | None = None,
) -> ApiError:
    """Create an error of the HTTP layer itself."""
    body = envelope(message, error_type, param=param, code=code)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(retry_after_s))))
    return ApiError(status, body, headers, message)


def error_for(exc: Exception, *, is_admin: bool = True) -> ApiError:
    """The error response for an exception; an unknown exception becomes a 500 without details.

    `is_admin`: whether the caller may read engines' logs, which some messages quote.
    """
    for ancestor in type(exc).__mro__:
        if ancestor in _TABLE:
            break
    else:
        return api_error(
            500, "internal error; see Berth's log for details", "internal_error", code="internal_error"
        )
    status, error_type, retry_after_s = _TABLE[ancestor]
    message, code = str(exc), getattr(exc, "code", None)
    if not is_admin:
        message = getattr(exc, "public", message)
    given = getattr(exc, "retry_after_s", None)
    return api_error(
        status,
        message,
        error_type,
        param=getattr(exc, "param", None),
        code=code,
        retry_after_s=retry_after_s if given is None else given,
    )
