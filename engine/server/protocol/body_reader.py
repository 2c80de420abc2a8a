"""From a request's bytes to a checked body, with errors that name the field as the client wrote it."""

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
from engine.server.http.errors import BodyTooLarge, WrongMediaType
from engine.server.http.large_work import LARGE_BYTES, LargeWork
from engine.server.protocol.field_rules import NO_RULES, FieldRules, apply_rules
from engine.server.protocol.generation_body import Strict
from engine.server.protocol.json_budget import JsonExcess, find_json_excess
from engine.server.protocol.limits import (
    MAX_BODY_BYTES,
    MAX_FIELDS,
)
from engine.server.protocol.size_check import LimitTree, check_sizes, is_larger, tree_of
from engine.server.protocol.unknown_fields import drop_unknown, unknown_are_refused

_MAX_DESCRIBED = 1000  # errors of one body: each is an object, and a body of 32 MB may hold millions
_SHOWN = 80  # characters of a wrong value

Body = TypeVar("Body", bound=Strict)
T = TypeVar("T")


async def read_body(request: Request, model: type[Body], rules: FieldRules = NO_RULES) -> Body:
    """The checked body; a large one is parsed and checked in a thread. Raises InvalidRequest and its like."""
    raw = await _read(request)
    return await _in_turn(request, raw, lambda: check(_parse(raw, model), model, rules, num_bytes=len(raw)))


async def read_json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object, for what can't be checked at once. Raises InvalidRequest and its like."""
    raw = await _read(request)
    return await _in_turn(request, raw, lambda: _parse(raw))


async def check_parsed(
    request: Request, body: Mapping[str, Any], model: type[Body], rules: FieldRules = NO_RULES
) -> Body:
    """`check` of what `read_json_object` gave, in a thread where that is large."""
    return await _in_turn(request, body, lambda: check(body, model, rules))


def check(
    body: Mapping[str, Any], model: type[Body], rules: FieldRules = NO_RULES, *, num_bytes: int | None = None
) -> Body:
    """The checked body. Raises InvalidRequest that names the first wrong field.

    `num_bytes`: of the text that the body was read from, where that is known.
    """
    if len(body) > MAX_FIELDS:
        raise InvalidRequest(f"The body has {len(body)} fields; no more than {MAX_FIELDS} are possible.")
    check_sizes(body, _tree_for(model), num_bytes=num_bytes)
    return check_derived(body, model, rules)


@cache
def _tree_for(model: type[Strict]) -> LimitTree:
    return tree_of(model.all_size_limits())


def check_derived(body: Mapping[str, Any], model: type[Body], rules: FieldRules = NO_RULES) -> Body:
    """The same of a body that was made here of another, which has been compared with its own size_limits."""
    known = apply_rules(body, rules)
    try:
        return model.model_validate(known)
    except ValidationError as error:
        if unknown_are_refused():
            raise _translate(error, body) from error
    return _check_leniently(known, model)


async def _in_turn(request: Request, body: bytes | Mapping[str, Any], work: Callable[[], T]) -> T:
    is_large = len(body) > LARGE_BYTES if isinstance(body, bytes) else is_larger(body, LARGE_BYTES // 4)
    large_work: LargeWork = request.app.state.service.large_work
    return await large_work.run(work) if is_large else work()


def _check_leniently(body: Mapping[str, Any], model: type[Body]) -> Body:
    """A second look, at a body that isn't right: fields that no model declares are dropped and reported."""
    try:
        checked = model.model_validate(body, extra="allow")
    except ValidationError as error:
        raise _translate(error, body) from error
    drop_unknown(checked)
    return checked


def _check_media_type(content_type: str | None) -> None:
    """A page of any origin may send a form or plain text without asking first, so JSON must be called so."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise WrongMediaType(
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
    """By pydantic's parser: faster than `json`, and strict about UTF-8, surrogates, numbers and depth.

    `model`: whose size_limits to compare with where the text holds too much to be parsed.
    """
    excess = find_json_excess(raw)
    try:
        with _no_collection() if len(raw) > LARGE_BYTES else nullcontext():
            value = from_json(
                raw if excess is None else raw[: excess.length],
                allow_inf_nan=False,
                allow_partial=excess is not None,
            )
    except ValueError as error:
        raise InvalidRequest(f"The body is no JSON that can be read here: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if excess is not None:
        raise _over_budget(excess, value, model)
    return value


def _over_budget(excess: JsonExcess, beginning: dict[str, Any], model: type[Strict] | None) -> InvalidRequest:
    """What to say of a body of which only the beginning may be parsed."""
    try:
        if len(beginning) <= MAX_FIELDS and model is not None:
            check_sizes(beginning, _tree_for(model), is_cut=True)
    except InvalidRequest as error:
        return error
    if len(beginning) > MAX_FIELDS:
        return InvalidRequest(f"The body has {len(beginning)} fields or more; {MAX_FIELDS} are possible.")
    last = next(reversed(beginning), None)
    where = "The body" if last is None else f"{last[:_SHOWN]}: the body"
    return InvalidRequest(f"{where} may hold {excess.told}.", param=last)


@contextmanager
def _no_collection() -> Iterator[None]:
    """For a parser that makes a million objects and no garbage, collections are in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _translate(error: ValidationError, body: Mapping[str, Any]) -> InvalidRequest:
    if error.error_count() > _MAX_DESCRIBED:
        return InvalidRequest(f"The body has {error.error_count()} wrong values.")
    # Of a union's complaints, the one that got furthest knows best what was meant.
    details = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    param = _param(details, body)
    if details["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown field {param!r}.", param=param)
    if details["type"] == "missing":
        return InvalidRequest(f"{param!r} is required.", param=param)
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] in ("model_type", "dict_type"):  # pydantic speaks of Python's types
        message = "Input should be an object"
    if details["type"] != "value_error":
        message += f", not {_shorten(details['input'])}"
    return InvalidRequest(f"{param}: {message}." if param else f"{message}.", param=param or None)


def _shorten(value: Any) -> str:
    """A value as JSON, of which the first characters tell enough."""
    if isinstance(value, str):
        value = value[:_SHOWN]
    elif isinstance(value, list | dict) and len(value) > _SHOWN:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value, default=str)
    return text if len(text) < _SHOWN else f"{text[: _SHOWN - 3]}..."


def _param(details: ErrorDetails, body: Mapping[str, Any]) -> str:
    """`messages[0].content`: pydantic's location without what isn't in the body, the names of its choices.

    Such a name may be that of a field, too. Of the ways to read the location, the one that leads to the
    wrong value is right.
    """
    *inner, last = location = details["loc"]
    is_missing = details["type"] == "missing"  # the last part is not in the body, and that's the complaint
    ways = list(_ways(inner if is_missing else location, dict(body)))
    path = next((path for path, value in ways if value is details["input"]), ways[0][0])
    if is_missing:
        path += f".{last}" if path else str(last)
    if details["type"].startswith("union_tag"):  # which of several objects is meant can't be told
        discriminator = details.get("ctx", {}).get("discriminator", "()").strip("'")
        path += ".type" if discriminator.endswith("()") else f".{discriminator}"
    return path


def _ways(location: Sequence[str | int], value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each way to read a location as a path into `value`, and what lies there."""
    if not location:
        yield path, value
        return
    part, rest = location[0], location[1:]
    if isinstance(part, int):
        yield from _ways(rest, _at(value, part), f"{path}[{part}]")
        return
    if isinstance(value, dict) and part in value:
        yield from _ways(rest, value[part], f"{path}.{part}" if path else part)
    yield from _ways(rest, value, path)


def _at(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) and index < len(value) else None
