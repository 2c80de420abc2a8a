"""`GET /usage`: requests and tokens per key and model, kept across restarts."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from api.access.keys import Access, caller_of
from api.control.deps import Manager

PATH = b"/usage"

router = APIRouter(tags=["operations"])


class UsageOfModel(BaseModel):
    """The usage of one model by one key, given by its id."""

    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class UsageList(BaseModel):
    """The response of `GET /usage`."""

    object: Literal["list"] = "list"
    data: list[UsageOfModel]


@router.get(PATH.decode(), summary="Requests and tokens per key and model, since the state store was created")
async def usage(
    manager: Manager,
    request: Request,
    key_id: Annotated[str | None, Query(description="Only this key")] = None,
    model: Annotated[str | None, Query(description="Only this model")] = None,
) -> UsageList:
    """All keys for an admin; a request key gets its own usage."""
    caller = caller_of(request.scope)
    shown = None if caller.access is Access.ADMIN else caller.key_id
    totals = await manager.usage.totals(manager.state.store)
    return UsageList(
        data=[
            UsageOfModel(
                key_id=usage.key_id,
                model=usage.model,
                requests=usage.requests,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
            )
            for usage in totals
            if key_id in (None, usage.key_id)
            and model in (None, usage.model)
            and shown in (None, usage.key_id)
        ]
    )
