"""Bodies of other servers' control routes.

JSON, whatever content type is given. Unknown fields are ignored and named in a warning.
"""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError
from pydantic_core import from_json

Body = TypeVar("Body", bound="DialectBody")


class DialectBody(BaseModel):
    """The fields that Berth knows; the rest is ignored, and said to be."""

    model_config = ConfigDict(extra="allow", frozen=True)


class ModelBody(DialectBody):
    """A body that names a model."""

    model: StrictStr


async def read_body(kind: type[Body], request: Request, response: Response) -> Body:
    """Raises RequestValidationError."""
    content = await request.body()
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": ("body", 0), "msg": str(error), "ctx": {"error": str(error)}}]
        ) from None
    try:
        body = kind.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        ) from None
    if body.model_extra:
        names = ", ".join(f"{name} (unknown field)" for name in sorted(body.model_extra))
        response.headers["Warning"] = f'299 berth "ignored: {names}"'.encode("ascii", "replace").decode()
    return body


def documented(kind: type[DialectBody]) -> dict[str, object]:
    """The body in the OpenAPI document."""
    return {"requestBody": {"content": {"application/json": {"schema": kind.model_json_schema()}}}}
