"""An API error as a Starlette response."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from api.http.dialects import in_dialect
from api.http.dispatch import raw_path
from api.http.errors import ApiError


def error_response(error: ApiError, request: Request | None = None) -> Response:
    """In the format of the API that the request belongs to; OpenAI's if it is not given."""
    if request is not None:
        error = in_dialect(error, raw_path(request.scope), b"")
    response = Response(error.body, error.status)
    response.raw_headers = list(error.headers)
    return response
