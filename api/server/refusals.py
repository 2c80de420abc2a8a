"""Errors that the HTTP protocol itself sends, to requests that no application sees."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

from api.cors import Origins
from api.http.asgi import RawHeaders
from api.http.dialects import in_dialect
from api.http.errors import ApiError
from api.http.headers import find_header, sane_request_id


def in_client_form(error: ApiError, url: bytes, headers: RawHeaders, origins: Origins | None) -> ApiError:
    """The error in the request's API dialect, with its id and CORS headers, as far as they are known."""
    request_id = sane_request_id(find_header(headers, b"x-request-id"))
    error = in_dialect(error, url, request_id)
    lines = [*error.headers, (b"x-request-id", request_id)]
    if origins is not None and (origin := find_header(headers, b"origin")):
        lines = origins.answer(lines, origin)
    return replace(error, headers=lines)


def encode_refusal(error: ApiError) -> bytes:
    """The error as the last response of its connection."""
    status = HTTPStatus(error.status)
    lines = [b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode())]
    lines += [name + b": " + value for name, value in error.headers]
    lines += [b"connection: close", b"", error.body]
    return b"\r\n".join(lines)
