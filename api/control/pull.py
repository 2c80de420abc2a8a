"""`POST /models/pull`: downloads a model and reports progress, one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.control.catalog import Files, ModelFiles
from api.control.streams import UNBUFFERED
from api.http.errors import error_for
from instance_manager.errors import ManagerError
from instance_manager.hub.pull import Pulls

router = APIRouter(tags=["models"])


def _pulls(request: Request) -> Pulls:
    pulls: Pulls = request.app.state.pulls
    return pulls


class PullRequest(BaseModel):
    """The body of `POST /models/pull`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: StrictStr = Field(description="A model on the hub: `owner/name`, or `owner/name:Q4_K_M`")
    revision: StrictStr | None = Field(None, description="A branch, tag or commit; by default `main`")


@router.post("/models/pull", summary="Download a model from the hub", response_class=Response)
async def pull_model(body: PullRequest, pulls: Annotated[Pulls, Depends(_pulls)], files: Files) -> Response:
    """Responds in NDJSON. First `{"status": "resolving"}`, for GGUF files also with the `model` and `files`
    that are taken; then progress in bytes,
    `{"status": "downloading", "file", "completed", "total"}`, for all files if `file` is null; last
    `{"error": {…}}` or `{"status": "success", "model", "path", "size_bytes"}`. Closing the connection stops
    the download; another request resumes it."""
    pulls.check(body.model, body.revision)
    return LineStream(then_known(pulls.follow(body.model, body.revision), files))


async def then_known(
    lines: AsyncGenerator[Mapping[str, Any]], files: ModelFiles
) -> AsyncGenerator[Mapping[str, Any]]:
    """The lines; the model is known before its success is reported."""
    async with aclosing(lines):
        async for line in lines:
            if line.get("status") == "success":
                await files.refresh()
            yield line


class LineStream(StreamingResponse):
    """Closes its lines when the client disconnects, even while waiting for the next."""

    def __init__(self, lines: AsyncGenerator[Mapping[str, Any]]) -> None:
        self._encoded = _encoded(lines)
        super().__init__(self._encoded, media_type="application/x-ndjson", headers=UNBUFFERED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._encoded):
            await super().__call__(scope, receive, send)


async def _encoded(lines: AsyncGenerator[Mapping[str, Any]]) -> AsyncGenerator[bytes]:
    async with aclosing(lines):
        try:
            async for line in lines:
                yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
        except ManagerError as exc:
            yield error_for(exc).body + b"\n"
