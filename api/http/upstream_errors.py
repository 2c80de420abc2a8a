"""Failures between Berth and an engine; api/http/errors.py maps them to responses."""

from __future__ import annotations


class UpstreamError(Exception):
    """The engine could not be reached or did not respond as HTTP requires."""

    code = "upstream_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UpstreamRefused(UpstreamError):
    """No connection could be opened."""

    code = "engine_unreachable"


class UpstreamBroken(UpstreamError):
    """The connection ended before the response did."""

    code = "engine_disconnected"

    def __init__(self, message: str, *, response_begun: bool) -> None:
        super().__init__(message)
        self.response_begun = response_begun


class UpstreamInvalidResponse(UpstreamError):
    """The engine's response is not valid HTTP/1.1, or its head is too long."""

    code = "engine_bad_response"


class UpstreamTimeout(UpstreamError):
    """The engine exceeded a time limit."""

    code = "engine_timeout"
