"""An API error as a Starlette response."""

from __future__ import annotations

from starlette.responses import Response

from api.http.errors import ApiError


def error_response(error: ApiError) -> Response:
    response = Response(error.body, error.status)
    response.raw_headers = list(error.headers)
    return response
