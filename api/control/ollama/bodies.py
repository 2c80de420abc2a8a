"""The bodies of Ollama's control routes; their errors are 400, in Ollama's words where clients know them."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from api.http.errors import RequestRefused, api_error

INVALID = "invalid_request_error"


class _Body(BaseModel):
    """Unknown fields are ignored, as by Ollama; curl's `-d` needs no content type."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class NamedBody(_Body):
    """`name` is the older form of `model`."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None

    @property
    def called(self) -> str:
        """Raises RequestRefused."""
        if not (called := self.model or self.name):
            raise refusal("model is required")
        return called


class CopyBody(_Body):
    source: str = ""
    destination: str = ""


BodyT = TypeVar("BodyT", bound=_Body)


async def read_body(request: Request, schema: type[BodyT]) -> BodyT:
    """Raises RequestRefused."""
    raw = await request.body()
    if not raw.strip():
        raise refusal("missing request body")
    try:
        return schema.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise refusal(f"{where}: {first['msg']}") from None


def refusal(message: str, status: int = 400) -> RequestRefused:
    return RequestRefused(api_error(status, message, INVALID))
