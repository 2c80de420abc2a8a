"""Errors in a protocol's words: those of engines read, those of adapters caught."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from api.protocols.base import ErrorDetail, InvalidProtocolRequest, Json, ProtocolAdapter, to_json

logger = logging.getLogger("berth.protocols")

T = TypeVar("T")


class AdapterFailed(Exception):
    """An adapter raised what it may not raise; it has been logged."""


class InvalidResponse(Exception):
    """An engine's answer is not what OpenAI's API gives."""


def ask_adapter(adapter: ProtocolAdapter[Any], call: Callable[[], T]) -> T:
    """Call an adapter's code. Raises InvalidProtocolRequest, and AdapterFailed for whatever else it raises.

    Plug-ins are foreign code: their mistakes must end one request in a clean error, whatever they are.
    """
    try:
        return call()
    except InvalidProtocolRequest:
        raise
    except Exception as exc:  # foreign code's root: whatever it is, its author finds it in the log
        logger.exception("the protocol %r failed", adapter.name)
        raise AdapterFailed(adapter.name) from exc


def error_response(adapter: ProtocolAdapter[Any], error: ErrorDetail) -> tuple[int, Json]:
    """Status and body of an error; OpenAI's where the adapter can't even say this."""
    try:
        status, body = ask_adapter(adapter, lambda: _checked(adapter.create_error_response(error)))
    except (AdapterFailed, InvalidProtocolRequest):
        return ProtocolAdapter.create_error_response(adapter, failure_of(adapter))
    return status, body


def _checked(response: tuple[int, Json]) -> tuple[int, Json]:
    status, body = response
    if not 400 <= status < 600:
        raise ValueError(f"{status} is not an error's status")
    to_json(body)
    return status, body


def failure_of(adapter: ProtocolAdapter[Any]) -> ErrorDetail:
    """What a client learns of an adapter that broke."""
    message = f"the protocol {adapter.name!r} failed; Berth's log says more"
    return ErrorDetail(500, message, "internal_error", code="protocol_failed")


def upstream_error(message: str, status: int = 502) -> ErrorDetail:
    """An engine that answers what can't be understood."""
    return ErrorDetail(status, message, "upstream_error", code="upstream_garbled")


def read_error(status: int, body: bytes) -> ErrorDetail:
    """The error in a body: OpenAI's envelope, vLLM's older one without it, or whatever text it is.

    `status` 0: there was none, as the error came within a stream.
    """
    try:
        said = read_object(body)
    except InvalidResponse:
        text = body[:500].decode("utf-8", "replace").strip()
        return upstream_error(text or "the engine gave no reason", status or 502)
    inside = said.get("error", said)
    if not isinstance(inside, dict):
        inside = {"message": inside}
    code = inside.get("code")
    if not status:
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
    return ErrorDetail(
        status,
        str(inside.get("message") or said.get("detail") or "the engine gave no reason"),
        str(inside.get("type") or "upstream_error"),
        None if inside.get("param") is None else str(inside["param"]),
        None if code is None else str(code),
    )


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds. Raises InvalidResponse."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidResponse(f"no JSON: {exc}") from None
    if not isinstance(read, dict):
        raise InvalidResponse("no JSON object")
    return read
