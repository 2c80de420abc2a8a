"""Reads and validates request bodies; errors name the field as the client wrote it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from engine.errors import InvalidRequest
from engine.server.http.content_coding import decoded
from engine.server.http.errors import BodyTooLarge, UnsupportedMediaType
from engine.server.http.large_work import LARGE_BYTES, LargeWork
from engine.server.protocol.field_rules import NO_RULES, FieldRules, apply_rules
from engine.server.protocol.json_budget import JsonExcess, find_json_excess
from engine.server.protocol.limits import (
    MAX_BODY_BYTES,
    MAX_FIELDS,
)
from engine.server.protocol.request_body import Strict
from engine.server.protocol.size_check import LimitTree, check_sizes, is_larger, tree_of
from engine.server.protocol.unknown_fields import drop_unknown, unknown_are_refused

_MAX_REPORTED_ERRORS = 1000  # each is an object, and a body of 32 MB can have millions
_MAX_VALUE_CHARS = 80  # of an invalid value in an error

Body = TypeVar("Body", bound=Strict)
T = TypeVar("T")


async def read_body(request: Request, model: type[Body], rules: FieldRules = NO_RULES) -> Body:
    """Read and validate the body; a large one in a thread. Raises InvalidRequest and its subclasses."""
    raw = await _read(request)
    return await _run_sized(request, raw, lambda: check(_parse(raw, model), model, rules, num_bytes=len(raw)))


async def read_json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object, to be validated later. Raises InvalidRequest and its subclasses."""
    raw = await _read(request)
    return await _run_sized(request, raw, lambda: _parse(raw))


async def check_parsed(
    request: Request, body: Mapping[str, Any], model: type[Body], rules: FieldRules = NO_RULES
) -> Body:
    """`check` a body from `read_json_object`; a large one in a thread."""
    return await _run_sized(request, body, lambda: check(body, model, rules))


def check(
    body: Mapping[str, Any], model: type[Body], rules: FieldRules = NO_RULES, *, num_bytes: int | None = None
) -> Body:
    """The validated body. Raises InvalidRequest that names the first invalid field.

    `num_bytes`: the size of the body's JSON text, if known.
    """
    if len(body) > MAX_FIELDS:
        raise InvalidRequest(f"The body has {len(body)} fields; the maximum is {MAX_FIELDS}.")
    check_sizes(body, _tree_for(model), num_bytes=num_bytes)
    return check_derived(body, model, rules)


@cache
def _tree_for(model: type[Strict]) -> LimitTree:
    return tree_of(model.all_size_limits())


def check_derived(body: Mapping[str, Any], model: type[Body], rules: FieldRules = NO_RULES) -> Body:
    """Validate a body derived from another one, whose size limits were already checked."""
    known = apply_rules(body, rules)
    try:
        return model.model_validate(known)
    except ValidationError as error:
        if unknown_are_refused():
            raise _to_invalid_request(error, body) from error
    return _check_leniently(known, model)


async def _run_sized(request: Request, body: bytes | Mapping[str, Any], work: Callable[[], T]) -> T:
    is_large = len(body) > LARGE_BYTES if isinstance(body, bytes) else is_larger(body, LARGE_BYTES // 4)
    large_work: LargeWork = request.app.state.service.large_work
    return await large_work.run(work) if is_large else work()


def _check_leniently(body: Mapping[str, Any], model: type[Body]) -> Body:
    """Validate an invalid body again, with unknown fields dropped and reported."""
    try:
        checked = model.model_validate(body, extra="allow")
    except ValidationError as error:
        raise _to_invalid_request(error, body) from error
    drop_unknown(checked)
    return checked


def _check_media_type(content_type: str | None) -> None:
    """Require a JSON media type: pages of any origin can send forms and plain text without a preflight."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(
            f"The body must be application/json, not {media_type}: send the header "
            "`Content-Type: application/json` (curl -H 'Content-Type: application/json' …)."
        )


async def _read(request: Request) -> bytes:
    _check_media_type(request.headers.get("content-type"))
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        pieces.append(piece)
    return await decoded(b"".join(pieces), request.headers.get("content-encoding"), MAX_BODY_BYTES)


def _parse(raw: bytes, model: type[Strict] | None = None) -> dict[str, Any]:
    """Parse with pydantic: faster than `json`, and strict about UTF-8, surrogates, numbers and depth.

    `model`: its size limits make the error more precise if the text is too large to be parsed.
    """
    excess = find_json_excess(raw)
    try:
        with _gc_paused() if len(raw) > LARGE_BYTES else nullcontext():
            value = from_json(
                raw if excess is None else raw[: excess.length],
                allow_inf_nan=False,
                allow_partial=excess is not None,
            )
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if excess is not None:
        raise _excess_error(excess, value, model)
    return value


def _excess_error(
    excess: JsonExcess, beginning: dict[str, Any], model: type[Strict] | None
) -> InvalidRequest:
    """The error for a body of which only the beginning may be parsed."""
    try:
        if len(beginning) <= MAX_FIELDS and model is not None:
            check_sizes(beginning, _tree_for(model), is_cut=True)
    except InvalidRequest as error:
        return error
    if len(beginning) > MAX_FIELDS:
        return InvalidRequest(f"The body has {len(beginning)} fields or more; the maximum is {MAX_FIELDS}.")
    last = next(reversed(beginning), None)
    where = "The body" if last is None else f"{last[:_MAX_VALUE_CHARS]}: the body"
    return InvalidRequest(f"{where} may have {excess.problem}.", param=last)


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Disable garbage collection while a parser creates a million objects and no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _to_invalid_request(error: ValidationError, body: Mapping[str, Any]) -> InvalidRequest:
    if error.error_count() > _MAX_REPORTED_ERRORS:
        return InvalidRequest(f"The body has {error.error_count()} invalid values.")
    # Of a union's errors, the deepest one belongs to the variant that was meant.
    details = max(error.errors(include_url=False), key=lambda details: len(details["loc"]))
    param = _param(details, body)
    if details["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown field {param!r}.", param=param)
    if details["type"] == "missing":
        return InvalidRequest(f"{param!r} is required.", param=param)
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] in ("model_type", "dict_type"):  # pydantic names Python's types
        message = "Input should be an object"
    if details["type"] != "value_error":
        message += f", not {_shorten(details['input'])}"
    return InvalidRequest(f"{param}: {message}." if param else f"{message}.", param=param or None)


def _shorten(value: Any) -> str:
    """The beginning of a value as JSON."""
    if isinstance(value, str):
        value = value[:_MAX_VALUE_CHARS]
    elif isinstance(value, list | dict) and len(value) > _MAX_VALUE_CHARS:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value, default=str)
    return text if len(text) < _MAX_VALUE_CHARS else f"{text[: _MAX_VALUE_CHARS - 3]}..."


def _param(details: ErrorDetails, body: Mapping[str, Any]) -> str:
    """The path of the invalid field, such as `messages[0].content`.

    pydantic's location also contains names of union variants, which can equal field names. Of the possible
    readings, the one that leads to the invalid value is right.
    """
    *inner, last = location = details["loc"]
    is_missing = details["type"] == "missing"  # then the last part is the missing field
    readings = list(_readings(inner if is_missing else location, dict(body)))
    path = next((path for path, value in readings if value is details["input"]), readings[0][0])
    if is_missing:
        path += f".{last}" if path else str(last)
    if details["type"].startswith("union_tag"):  # the variant could not be determined
        discriminator = details.get("ctx", {}).get("discriminator", "()").strip("'")
        path += ".type" if discriminator.endswith("()") else f".{discriminator}"
    return path


def _readings(location: Sequence[str | int], value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every reading of a location as a path into `value`, with the value found there."""
    if not location:
        yield path, value
        return
    part, rest = location[0], location[1:]
    if isinstance(part, int):
        yield from _readings(rest, _at(value, part), f"{path}[{part}]")
        return
    if isinstance(value, dict) and part in value:
        yield from _readings(rest, value[part], f"{path}.{part}" if path else part)
    yield from _readings(rest, value, path)


def _at(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) and index < len(value) else None
