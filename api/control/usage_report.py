"""`GET /usage`: what each key has used of each model, over restarts of Berth."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from api.access.keys import Access, caller_of
from api.control.deps import Manager

PATH = b"/usage"

router = APIRouter(tags=["operations"])


class UsageOfModel(BaseModel):
    """A key's id (never the key), a model's name, and how much of it."""

    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class UsageList(BaseModel):
    """What `GET /usage` answers."""

    object: Literal["list"] = "list"
    data: list[UsageOfModel]


@router.get(PATH.decode(), summary="Requests and tokens per key and model, since the state began")
async def usage(
    manager: Manager,
    request: Request,
    key_id: Annotated[str | None, Query(description="Of this key alone")] = None,
    model: Annotated[str | None, Query(description="Of this model alone")] = None,
) -> UsageList:
    """Of all keys for an admin; a key for requests reads its own."""
    caller = caller_of(request.scope)
    shown = None if caller.access is Access.ADMIN else caller.key_id
    totals = await manager.usage.totals(manager.state.store)
    return UsageList(
        data=[
            UsageOfModel(
                key_id=one.key_id,
                model=one.model,
                requests=one.requests,
                prompt_tokens=one.prompt_tokens,
                completion_tokens=one.completion_tokens,
            )
            for one in totals
            if key_id in (None, one.key_id) and model in (None, one.model) and shown in (None, one.key_id)
        ]
    )
