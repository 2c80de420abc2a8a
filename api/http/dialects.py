"""Errors in the format of the requested API: OpenAI's envelope, Anthropic's below /v1/messages, Ollama's.

An SDK reads its own API's errors only. api/http/errors.py maps exceptions to errors.
"""

from __future__ import annotations

import json
import re
from typing import Any

from api.http.asgi import RawHeaders
from api.http.errors import ApiError, error_for

_OLLAMA = re.compile(rb"/api(?:/(?!v\d)|$)")  # LM Studio's paths begin with /api/v1
_MESSAGES = re.compile(rb"(?:/proxy/[^/?]+)?/v1/messages(?:[/?]|$)")

# The embedded engine's server has the same table; tests keep them equal.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def speaks_anthropic(target: bytes) -> bool:
    """Whether a path belongs to Anthropic's API, with or without /proxy/{id}; a query may follow."""
    return _MESSAGES.match(target) is not None


def speaks_ollama(target: bytes) -> bool:
    """Whether a path belongs to Ollama's API; a query may follow."""
    return _OLLAMA.match(target) is not None


def anthropic_type(status: int) -> str:
    """Anthropic's error type for this status."""
    return _ANTHROPIC_TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def in_dialect(error: ApiError, target: bytes, request_id: bytes) -> ApiError:
    """The error in the format of the API that `target` belongs to. Idempotent."""
    if speaks_ollama(target):
        return _ollama_error(error)
    if not speaks_anthropic(target):
        return error
    body = _anthropic_body(error, request_id)
    replaced = (b"content-length", b"request-id")
    headers: RawHeaders = [pair for pair in error.headers if pair[0] not in replaced]
    headers += [(b"content-length", b"%d" % len(body)), (b"request-id", request_id)]
    return ApiError(error.status, body, headers, error.message)


def _ollama_error(error: ApiError) -> ApiError:
    """Ollama has one status for a request that can't be served as it is."""
    body = json.dumps({"error": error.message}, ensure_ascii=False).encode("utf-8", "replace")
    headers: RawHeaders = [pair for pair in error.headers if pair[0] != b"content-length"]
    headers.append((b"content-length", b"%d" % len(body)))
    return ApiError(400 if error.status == 422 else error.status, body, headers, error.message)


def error_event(body: bytes, target: bytes) -> bytes:
    """An error's body, already in the dialect of `target`, as the last server-sent event of its stream."""
    name = b"event: error\n" if speaks_anthropic(target) else b""
    return (
        name + b"data: " + b" ".join(body.splitlines()) + b"\n\n"
    )  # in JSON, lines break between tokens only


def stream_error_event(exc: Exception, target: bytes, request_id: bytes) -> bytes:
    """The exception that broke a stream, as its last server-sent event."""
    return error_event(in_dialect(error_for(exc), target, request_id).body, target)


def _anthropic_body(error: ApiError, request_id: bytes) -> bytes:
    inside = {"type": anthropic_type(error.status), "message": error.message, **_details(error.body)}
    envelope = {"type": "error", "error": inside, "request_id": request_id.decode("latin-1")}
    return json.dumps(envelope, ensure_ascii=False).encode("utf-8", "replace")


def _details(body: bytes) -> dict[str, Any]:
    """What a translated error says besides, for Anthropic's SDKs."""
    error = json.loads(body)["error"]
    return {"details": error["details"]} if isinstance(error, dict) and "details" in error else {}
