"""Routes that act on the engine itself: abort requests."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.server.body import check, read_json_object
from engine.server.protocol import Strict
from engine.server.request_ids import sequence_ids_of
from engine.server.service import Service


class AbortBody(Strict):
    request_ids: list[str] = Field(min_length=1, max_length=4096)


async def abort_requests(request: Request) -> Response:
    """End requests by the ids that their answers carry. They get what there is, with reason `abort`."""
    service = _service(request)
    body = check(await read_json_object(request), AbortBody, {})
    ids = sequence_ids_of(body.request_ids, service.engine.request_ids)
    for one in ids:
        service.engine.abort(one)
    return JSONResponse({"status": "aborted", "aborted": len(ids)})


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
