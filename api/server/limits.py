"""Limits on clients' requests, their speed and their number of connections, and the errors they cause."""

from __future__ import annotations

from dataclasses import dataclass

from api.http.errors import ApiError, api_error

_INVALID = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Times in seconds. `body_timeout_s` is for the pause between two pieces of a body, not for all of it."""

    max_connections: int = 4096
    max_body_bytes: int = 256 * 2**20
    max_head_bytes: int = 64 * 1024
    max_headers: int = 128
    head_timeout_s: float = 30.0
    body_timeout_s: float = 60.0

    def head_too_large(self) -> ApiError:
        message = (
            f"the request head exceeds {self.max_head_bytes >> 10} KiB or {self.max_headers} headers; "
            "send fewer or shorter headers"
        )
        return api_error(431, message, _INVALID, code="head_too_large")

    def body_too_large(self) -> ApiError:
        message = (
            f"the request body exceeds {self.max_body_bytes >> 20} MiB (MAX_BODY_MB); send a smaller one"
        )
        return api_error(413, message, _INVALID, code="body_too_large")

    def head_timed_out(self) -> ApiError:
        message = f"the request head was not complete after {self.head_timeout_s:g} s; send the request again"
        return api_error(408, message, _INVALID, code="head_timeout")

    def body_timed_out(self) -> ApiError:
        message = f"no more of the request body arrived for {self.body_timeout_s:g} s; send the request again"
        return api_error(408, message, _INVALID, code="body_timeout")

    def too_many_connections(self) -> ApiError:
        message = (
            f"the limit of {self.max_connections} connections (MAX_CONNECTIONS) is reached and none is idle; "
            "retry later"
        )
        return api_error(503, message, "service_unavailable_error", code="busy", retry_after_s=1.0)


def malformed_http() -> ApiError:
    return api_error(400, "malformed HTTP/1.1 request", _INVALID, code="bad_http")


def malformed_handshake(why: str) -> ApiError:
    message = f"invalid WebSocket handshake: {why}"
    return api_error(400, message, _INVALID, code="bad_handshake")
