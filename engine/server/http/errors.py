"""Maps engine errors to HTTP statuses and to the error envelopes of OpenAI and Anthropic."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from engine.errors import (
    EngineAsleep,
    EngineDead,
    EngineError,
    GenerationFailed,
    InvalidRequest,
    OutOfMemory,
    PromptTooLong,
)
from engine.server.http.request_ids import choose_request_id


class UnknownModel(InvalidRequest):
    code = "model_not_found"


class UnknownRoute(InvalidRequest):
    code = "not_found"


class UnknownResponse(InvalidRequest):
    code = "response_not_found"


class UnknownItem(InvalidRequest):
    code = "item_not_found"


class UnknownThread(InvalidRequest):
    """Anthropic's SDKs recognise it by `details`, and send the whole conversation."""

    code = "thread_not_found"


class MethodNotAllowed(InvalidRequest):
    code = "method_not_allowed"


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported_media_type"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class InvalidApiKey(EngineError):
    code = "invalid_api_key"


class QueueFull(EngineError):
    code = "queue_full"


class NotReady(EngineError):
    code = "not_ready"


class ShuttingDown(EngineError):
    code = "shutting_down"


class UnsupportedRoute(InvalidRequest):
    """A path of vLLM or OpenAI that this engine does not support."""

    code = "not_implemented"


_STATUS = {
    InvalidRequest.code: HTTPStatus.BAD_REQUEST,
    PromptTooLong.code: HTTPStatus.BAD_REQUEST,
    UnknownModel.code: HTTPStatus.NOT_FOUND,
    UnknownRoute.code: HTTPStatus.NOT_FOUND,
    UnknownResponse.code: HTTPStatus.NOT_FOUND,
    UnknownItem.code: HTTPStatus.NOT_FOUND,
    UnknownThread.code: HTTPStatus.NOT_FOUND,
    MethodNotAllowed.code: HTTPStatus.METHOD_NOT_ALLOWED,
    UnsupportedMediaType.code: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BodyTooLarge.code: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    InvalidApiKey.code: HTTPStatus.UNAUTHORIZED,
    QueueFull.code: HTTPStatus.TOO_MANY_REQUESTS,
    NotReady.code: HTTPStatus.SERVICE_UNAVAILABLE,
    ShuttingDown.code: HTTPStatus.SERVICE_UNAVAILABLE,
    EngineDead.code: HTTPStatus.SERVICE_UNAVAILABLE,
    EngineAsleep.code: HTTPStatus.SERVICE_UNAVAILABLE,
    OutOfMemory.code: HTTPStatus.SERVICE_UNAVAILABLE,  # when waking up; other processes may free memory
    UnsupportedRoute.code: HTTPStatus.NOT_IMPLEMENTED,
}

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "service_unavailable_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
}

_RETRY_AFTER_S = 1


def status_of(error: EngineError) -> HTTPStatus:
    return _STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)


def status_table() -> list[tuple[str, HTTPStatus]]:
    """Every error code with its status, sorted by status."""
    known = {**_STATUS, GenerationFailed.code: HTTPStatus.INTERNAL_SERVER_ERROR}
    return sorted(known.items(), key=lambda entry: entry[1])


def envelope(error: EngineError) -> bytes:
    """`{"error": {message, type, param, code}}`, as a body or as the data of an SSE event."""
    body = {
        "message": error.message,
        "type": _TYPES.get(status_of(error), "invalid_request_error"),
        "param": getattr(error, "param", None),
        "code": error.code,
    }
    return json.dumps({"error": body}).encode()


_ANTHROPIC_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "api_error",
}


def speaks_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def anthropic_envelope(error: EngineError) -> bytes:
    """`{"type": "error", "error": {type, message, param[, details]}, "request_id": …}`."""
    body: dict[str, Any] = {
        "type": _ANTHROPIC_TYPES.get(status_of(error), "invalid_request_error"),
        "message": error.anthropic if isinstance(error, PromptTooLong) else error.message,
        "param": getattr(error, "param", None),
    }
    if isinstance(error, UnknownThread):
        body["details"] = {"error_code": error.code}
    content = {"type": "error", "error": body, "request_id": choose_request_id(None)}
    return json.dumps(content).encode()


def error_response(error: EngineError, path: str = "") -> Response:
    """The error in the protocol of the requested path."""
    status = status_of(error)
    body = anthropic_envelope(error) if speaks_anthropic(path) else envelope(error)
    headers = {}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(body, status, headers, media_type="application/json")
