"""From a request's bytes to a checked body, with errors that name the field as the client wrote it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from engine.errors import InvalidRequest
from engine.server.errors import BodyTooLarge, WrongMediaType
from engine.server.generation_body import Strict
from engine.server.refused_fields import drop_refused

MAX_BODY_BYTES = 32 * 2**20
LARGE_BYTES = 64 * 2**10  # from here on, work on a text goes to a thread: the loop has streams to serve
_MAX_DESCRIBED = 1000  # errors of one body: each is an object, and a body of 32 MB may hold millions
_SHOWN = 80  # characters of a wrong value

Body = TypeVar("Body", bound=Strict)


async def read_body(
    request: Request, model: type[Body], refused: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
) -> Body:
    """The checked body; a large one is parsed and checked in a thread. Raises InvalidRequest and its like."""
    raw = await _read(request)
    if len(raw) <= LARGE_BYTES:
        return check(_parse(raw), model, refused)
    return await asyncio.to_thread(lambda: check(_parse(raw), model, refused))


async def read_json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object, for what can't be checked at once. Raises InvalidRequest and its like."""
    raw = await _read(request)
    return await asyncio.to_thread(_parse, raw) if len(raw) > LARGE_BYTES else _parse(raw)


def check(body: Mapping[str, Any], model: type[Body], refused: Mapping[str, tuple[Any, ...]]) -> Body:
    """The checked body. Raises InvalidRequest that names the first wrong field."""
    try:
        return model.model_validate(drop_refused(body, refused))
    except ValidationError as error:
        raise _translate(error) from error


def _check_media_type(content_type: str | None) -> None:
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise WrongMediaType(f"The body must be application/json, not {media_type}.")


async def _read(request: Request) -> bytes:
    _check_media_type(request.headers.get("content-type"))
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


def _parse(raw: bytes) -> dict[str, Any]:
    """By pydantic's parser: faster than `json`, and strict about UTF-8, surrogates, numbers and depth."""
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"The body is no JSON that can be read here: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def _translate(error: ValidationError) -> InvalidRequest:
    if error.error_count() > _MAX_DESCRIBED:
        return InvalidRequest(f"The body has {error.error_count()} wrong values.")
    # Of a union's complaints, the one that got furthest knows best what was meant.
    details = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    param = _param(details)
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


def _param(details: ErrorDetails) -> str:
    """`messages[0].content`, from pydantic's location; its names of types are left out."""
    path = ""
    for part in details["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool", "none"):
            path += f".{part}" if path else part
    if details["type"].startswith("union_tag"):  # which of several objects is meant can't be told
        path += "." + details["ctx"]["discriminator"].strip("'")
    return path
