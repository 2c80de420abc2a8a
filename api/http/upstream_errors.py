"""What can go wrong between Berth and an engine; what each is to the client, api/http/errors.py says."""

from __future__ import annotations


class UpstreamError(Exception):
    """The engine could not be reached or did not answer as HTTP asks; its status is in api/http/errors.py."""

    code = "upstream_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UpstreamRefused(UpstreamError):
    """No connection came about."""

    code = "engine_unreachable"


class UpstreamBroken(UpstreamError):
    """The connection ended before the response did."""

    code = "engine_disconnected"

    def __init__(self, message: str, *, response_begun: bool) -> None:
        super().__init__(message)
        self.response_begun = response_begun


class UpstreamInvalidResponse(UpstreamError):
    """What came is no HTTP/1.1 response, or a head without end."""

    code = "engine_bad_response"


class UpstreamTimeout(UpstreamError):
    """The engine took longer than it may."""

    code = "engine_timeout"
