"""Translates one request's body into OpenAI's format, by its protocol's adapter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from api.http.json_structure import TooManyParts, check_parts
from api.http.named_model import InvalidBody, UnclearModel, has_one_model, model_in_object, read_object
from api.protocols.base import (
    INVALID_REQUEST,
    ErrorDetail,
    InvalidProtocolRequest,
    LoadRequest,
    ProtocolAdapter,
    ProtocolRequest,
    StreamTranslator,
    to_json,
)
from api.protocols.errors import AdapterFailed, ask_adapter, failure_of

MAX_COMMAS = 250_000  # between a body's values, which are parsed, validated, copied and encoded

_MAX_REPORTED = 16  # in one warning
_UNPRINTABLE = re.compile(r"[^ !#-\[\]-~]")  # in a quoted string of a header


@dataclass(frozen=True, slots=True)
class TranslatedRequest:
    """A request in both formats."""

    request: ProtocolRequest
    path: str
    body: bytes
    translator: StreamTranslator | None  # None = not streamed
    warning: bytes = b""  # the value of a `Warning` header; empty = none
    load: LoadRequest | None = None  # in place of the request


class RequestInvalid(Exception):
    """The request can't be served as it is."""

    def __init__(self, error: ErrorDetail) -> None:
        super().__init__(error.message)
        self.error = error


def read_request(adapter: ProtocolAdapter[Any], body: bytes, default_model: str) -> TranslatedRequest:
    """Raises RequestInvalid. Takes a millisecond or two for each 256 KiB."""
    try:
        return _read(adapter, body, default_model)
    except ValidationError as exc:
        raise RequestInvalid(_validation_error(exc)) from None
    except InvalidProtocolRequest as exc:
        detail = ErrorDetail(
            exc.status, exc.message, INVALID_REQUEST, exc.param, exc.code or "invalid_request"
        )
        raise RequestInvalid(detail) from None
    except AdapterFailed:
        raise RequestInvalid(failure_of(adapter)) from None


def too_long(max_bytes: int) -> ErrorDetail:
    """The error for a longer body."""
    message = f"the body exceeds {max_bytes} bytes, the limit of this route; send a smaller one"
    return ErrorDetail(413, message, INVALID_REQUEST, code="body_too_large")


def _read(adapter: ProtocolAdapter[Any], body: bytes, default_model: str) -> TranslatedRequest:
    try:
        check_parts(body, MAX_COMMAS)
    except TooManyParts as exc:
        raise InvalidProtocolRequest(str(exc)) from None
    request = adapter.request_schema.model_validate_json(body)
    if not has_one_model(body):
        _check_model(body)

    def translate() -> TranslatedRequest:
        asked = adapter.to_openai(request)
        if isinstance(asked, LoadRequest):
            return TranslatedRequest(request, "", b"", None, load=asked)
        fields = {**asked.body, "model": asked.body.get("model") or default_model}
        translator = adapter.translator_for(request)
        return TranslatedRequest(request, asked.path, to_json(fields), translator, _warning(asked.ignored))

    return ask_adapter(adapter, translate)


def _check_model(body: bytes) -> None:
    """Raises InvalidProtocolRequest if the body names its model ambiguously."""
    try:
        model_in_object(body, read_object(body))
    except (UnclearModel, InvalidBody) as exc:
        raise InvalidProtocolRequest(f"model {exc}", param="model") from None


def _warning(ignored: Any) -> bytes:
    """As the embedded engine writes it: code 299, a persistent warning (RFC 7234)."""
    if not ignored:
        return b""
    named = [f"{name[:100]} ({reason})" for name, reason in list(ignored.items())[:_MAX_REPORTED]]
    if len(ignored) > len(named):
        named.append(f"{len(ignored) - len(named)} more")
    return f'299 berth "ignored: {_UNPRINTABLE.sub("?", ", ".join(named))}"'.encode()


def _validation_error(exc: ValidationError) -> ErrorDetail:
    """400 for a body that isn't JSON, 422 for an invalid field; reports the first error."""
    first = exc.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ErrorDetail(
            400, f"the body is not valid JSON: {first['msg']}", INVALID_REQUEST, code="invalid_json"
        )
    param = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part)) or None
    message = f"{param or 'the body'}: {first['msg']}{_shown(first['input'])}"
    return ErrorDetail(422, message, INVALID_REQUEST, param, first["type"])


def _is_union_tag(part: int | str) -> bool:
    """Whether a part of an error's location is not a field, but a member of a union type."""
    return part in ("str", "int", "float", "bool") or (isinstance(part, str) and "[" in part)


def _shown(value: object) -> str:
    """The invalid value, if it is short enough to help."""
    if value is None or isinstance(value, dict | list):
        return ""
    text = repr(value)
    return f" (got {text})" if len(text) <= 100 else ""
