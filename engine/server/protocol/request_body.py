"""The base of all request bodies: strict types, and how fields that aren't declared are treated."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from engine.server.protocol import body_limits
from engine.server.protocol.size_limit import SizeLimit


class Strict(BaseModel):
    """Unknown fields are errors, unless body_reader.py drops and reports them."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    size_limits: ClassVar[tuple[SizeLimit, ...]] = ()
    """The size limits of a body's own fields."""

    @classmethod
    def all_size_limits(cls) -> tuple[SizeLimit, ...]:
        """Also those of base classes, except for fields that a subclass limits itself."""
        size_limits: dict[str, tuple[SizeLimit, ...]] = {}
        for base in cls.__mro__:
            own: dict[str, tuple[SizeLimit, ...]] = {}
            for limit in vars(base).get("size_limits", ()):
                own[limit.field] = (*own.get(limit.field, ()), limit)
            size_limits = own | size_limits
        return tuple(limit for of_field in size_limits.values() for limit in of_field)


def null_as(default: Any) -> BeforeValidator:
    """Treat null as not given, as both protocols do."""
    return BeforeValidator(lambda value: default if value is None else value)


MINUS_ONE_AS_NONE = BeforeValidator(lambda value: None if value == -1 else value)
"""Clients of other servers send -1 for no limit, or for a random seed."""
Ignored = Annotated[Any, Field(exclude=True, description="Accepted, without effect.")]
"""The type of fields that clients send back and that have no effect: `annotations: Ignored = None`."""


class RequestBody(Strict):
    size_limits = body_limits.NAMED

    model: str | None = Field(default=None, description="Default: the served model.")
