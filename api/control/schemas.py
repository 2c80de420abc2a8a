"""What the control routes take and give, as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
STOP_LEVEL = 3
SleepLevel = Annotated[
    int,
    Query(ge=1, le=STOP_LEVEL, description="1: the KV cache's, 2: the weights' too, 3: all, it is stopped"),
]

# A GPU's number may be one, as models.yaml has it.
Device = Annotated[StrictStr, BeforeValidator(lambda one: str(one) if type(one) is int else one)]


class InstanceCreate(BaseModel):
    """The body of `POST /instances`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_name: StrictStr | None = Field(
        None, description="A model's name, a directory, or a hub id; by default the setting DEFAULT_MODEL"
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="The engine's parameters, as its flags in snake_case; null removes an inherited one",
    )
    timeout: Seconds | None = Field(None, description="Seconds of idleness until it expires; 0 = never")
    engine: StrictStr | None = Field(None, description="`engine` (embedded), `vllm` or `command`")
    name: StrictStr | None = Field(None, description="Becomes the instance's id; one is made otherwise")
    env: dict[StrictStr, StrictStr] = Field(default_factory=dict, description="More environment variables")
    devices: list[Device] | None = Field(None, description="GPUs by index or UUID; [] = none")
    command: list[StrictStr] | None = Field(
        None, description="For `engine: command`: argv, with {port}, {model} and {host} filled in"
    )
    health_path: StrictStr | None = Field(None, description="For `engine: command`, in place of /health")


class InstancePatch(BaseModel):
    """The body of `PATCH /instances/{id}`; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout: Seconds | None = None
    pinned: StrictBool | None = Field(None, description="A pinned instance never expires")


class InstanceList(BaseModel):
    """What `GET /instances` answers."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class ErrorBody(BaseModel):
    """The inside of OpenAI's error envelope."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every error of every route."""

    error: ErrorBody
