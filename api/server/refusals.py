"""Errors that the server itself sends, to requests that no application sees."""

from __future__ import annotations

from api.cors import Origins
from api.http.asgi import RawHeaders
from api.http.dialects import in_dialect
from api.http.errors import ApiError
from api.http.headers import find_header, sane_request_id
from api.server.responses import encode_whole


def encode_refusal(error: ApiError, url: bytes, headers: RawHeaders, origins: Origins | None) -> bytes:
    """The error in the request's API dialect, with its id and CORS headers, as far as they are known."""
    request_id = sane_request_id(find_header(headers, b"x-request-id"))
    error = in_dialect(error, url, request_id)
    lines = [*error.headers, (b"x-request-id", request_id)]
    if origins is not None and (origin := find_header(headers, b"origin")):
        lines = origins.answer(lines, origin)
    return encode_whole(error.status, lines, error.body, is_head_request=False, keep_alive=False)
