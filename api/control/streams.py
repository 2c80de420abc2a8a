"""Streams: an instance's log and the events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent, format_sse_event
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from api.control.deps import Manager

router = APIRouter()

UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.get("/instances/{instance_id}/logs", tags=["instances"], response_class=PlainTextResponse)
async def logs(
    instance_id: str,
    manager: Manager,
    tail: Annotated[int, Query(ge=0, le=100_000, description="Number of most recent lines")] = 100,
    follow: Annotated[bool, Query(description="Continue with new lines, as server-sent events")] = False,
) -> Response:
    """The engine's output as text, or with `follow` as server-sent events."""
    if follow:
        lines = manager.follow_log(instance_id, tail)
        return StreamingResponse(_as_events(lines), media_type="text/event-stream", headers=UNBUFFERED)
    return PlainTextResponse("".join(line + "\n" for line in manager.read_log(instance_id, tail)))


@router.get("/events", tags=["operations"], response_class=EventSourceResponse)
async def events(
    manager: Manager, last_event_id: Annotated[int | None, Header(ge=0)] = None
) -> AsyncIterator[ServerSentEvent]:
    """Every transition, expiry and deletion as it happens; `Last-Event-ID` resumes."""
    async for event in manager.events.subscribe(after=last_event_id):
        data = {"time": event.time, "instance_id": event.instance_id, **event.data}
        yield ServerSentEvent(id=str(event.event_id), event=event.type, data=data)


async def _as_events(lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield format_sse_event(data_str=line)
