"""From a request's bytes to a checked body, with errors that name the field as the client wrote it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from engine.errors import InvalidRequest
from engine.server.errors import BodyTooLarge, WrongMediaType
from engine.server.generation_body import Strict
from engine.server.refused_fields import drop_refused

MAX_BODY_BYTES = 64 * 2**20
LARGE_BYTES = 64 * 2**10  # from here on, work on a text goes to a thread: the loop has streams to serve

Body = TypeVar("Body", bound=Strict)


async def read_json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises InvalidRequest and its like for anything else."""
    _check_media_type(request.headers.get("content-type"))
    raw = await _read(request)
    value = await asyncio.to_thread(_parse, raw) if len(raw) > LARGE_BYTES else _parse(raw)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


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
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise InvalidRequest("The body's JSON is nested too deeply.") from error
    except ValueError as error:  # JSONDecodeError, and UnicodeDecodeError for what isn't UTF-8
        raise InvalidRequest(f"The body is no JSON: {error}.") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _translate(error: ValidationError) -> InvalidRequest:
    # Of a union's complaints, the one that got furthest knows best what was meant.
    details = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    param = _param(details)
    if details["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown field {param!r}.", param=param)
    if details["type"] == "missing":
        return InvalidRequest(f"{param!r} is required.", param=param)
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] != "value_error":
        message += f", not {_shorten(details['input'])}"
    return InvalidRequest(f"{param}: {message}." if param else f"{message}.", param=param or None)


def _shorten(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
