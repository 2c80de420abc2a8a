"""What a client may send, how slowly, and how many may be connected; and what those hear who go beyond it."""

from __future__ import annotations

from dataclasses import dataclass

from api.http.errors import ApiError, api_error

_INVALID = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Times in seconds. `body_timeout_s` is for a body that stands still, not for all of it."""

    max_connections: int = 4096
    max_body_bytes: int = 256 * 2**20
    max_head_bytes: int = 64 * 1024
    max_headers: int = 128
    head_timeout_s: float = 30.0
    body_timeout_s: float = 60.0

    def head_too_large(self) -> ApiError:
        message = (
            f"the request's head is longer than {self.max_head_bytes >> 10} KiB, "
            f"or has more than {self.max_headers} headers"
        )
        return api_error(431, message, _INVALID, code="head_too_large")

    def body_too_large(self) -> ApiError:
        message = f"the body is longer than the {self.max_body_bytes >> 20} MiB of MAX_BODY_MB"
        return api_error(413, message, _INVALID, code="body_too_large")

    def head_late(self) -> ApiError:
        message = f"the request's head took more than {self.head_timeout_s:g} s"
        return api_error(408, message, _INVALID, code="head_timeout")

    def body_late(self) -> ApiError:
        message = f"nothing of the body has come for {self.body_timeout_s:g} s"
        return api_error(408, message, _INVALID, code="body_timeout")


def no_room() -> ApiError:
    message = "Berth has as many connections as it takes, and all are in use"
    return api_error(503, message, "service_unavailable_error", code="busy", retry_after_s=1.0)


def no_http() -> ApiError:
    return api_error(400, "this is no valid HTTP/1.1", _INVALID, code="bad_http")


def no_handshake(why: str) -> ApiError:
    message = f"this can't be read as a WebSocket's handshake: {why}"
    return api_error(400, message, _INVALID, code="bad_handshake")
