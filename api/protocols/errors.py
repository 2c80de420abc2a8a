"""Errors in a protocol's format: parses those of engines, catches those of adapters."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from api.protocols.base import (
    ErrorDetail,
    InvalidProtocolRequest,
    InvalidResponse,
    Json,
    ProtocolAdapter,
    to_json,
)

logger = logging.getLogger("berth.protocols")

T = TypeVar("T")


class AdapterFailed(Exception):
    """An adapter raised an unexpected exception, which has been logged."""


def ask_adapter(adapter: ProtocolAdapter[Any], call: Callable[[], T]) -> T:
    """Call an adapter's code. Raises InvalidProtocolRequest, InvalidResponse, else AdapterFailed.

    Plug-ins are third-party code: any mistake in them must end in a clean error for one request.
    """
    try:
        return call()
    except (InvalidProtocolRequest, InvalidResponse):
        raise
    except Exception as exc:  # the root of third-party code, which may raise anything
        logger.exception("protocol adapter %r failed", adapter.name)
        raise AdapterFailed(adapter.name) from exc


def error_response(adapter: ProtocolAdapter[Any], error: ErrorDetail) -> tuple[int, Json]:
    """Status and body of an error; OpenAI's if the adapter fails here too."""
    try:
        status, body = ask_adapter(adapter, lambda: _checked(adapter.create_error_response(error)))
    except (AdapterFailed, InvalidProtocolRequest, InvalidResponse):
        return ProtocolAdapter.create_error_response(adapter, failure_of(adapter))
    return status, body


def _checked(response: tuple[int, Json]) -> tuple[int, Json]:
    status, body = response
    if not 400 <= status < 600:
        raise ValueError(f"{status} is not an error status")
    to_json(body)
    return status, body


def failure_of(adapter: ProtocolAdapter[Any]) -> ErrorDetail:
    """The error for a client whose adapter failed."""
    message = f"the protocol adapter {adapter.name!r} failed; see Berth's log for details"
    return ErrorDetail(500, message, "internal_error", code="protocol_failed")


def upstream_error(message: str, status: int = 502) -> ErrorDetail:
    """An engine's response could not be understood."""
    return ErrorDetail(status, message, "upstream_error", code="upstream_garbled")


def read_error(status: int, body: bytes) -> ErrorDetail:
    """The error in a body: OpenAI's envelope, vLLM's older format without it, or any text.

    `status` 0: none, as the error came within a stream.
    """
    try:
        parsed = read_object(body)
    except InvalidResponse:
        text = body[:500].decode("utf-8", "replace").strip()
        return upstream_error(text or "the engine gave no reason", status or 502)
    inside = parsed.get("error", parsed)
    if not isinstance(inside, dict):
        inside = {"message": inside}
    code = inside.get("code")
    if not status:
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
    return ErrorDetail(
        status,
        str(inside.get("message") or parsed.get("detail") or "the engine gave no reason"),
        str(inside.get("type") or "upstream_error"),
        None if inside.get("param") is None else str(inside["param"]),
        None if code is None else str(code),
    )


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises InvalidResponse."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidResponse(f"not JSON: {exc}") from None
    if not isinstance(parsed, dict):
        raise InvalidResponse("not a JSON object")
    return parsed
