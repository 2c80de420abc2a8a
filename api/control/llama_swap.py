"""llama-swap's routes that scripts rely on: what runs, unload, logs. `/upstream/` is the gateway's."""

from __future__ import annotations

import asyncio
import shlex
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import PlainTextResponse, StreamingResponse

from api.access.keys import is_admin, may_see
from api.control.deps import Manager, Models
from api.control.engine_logs import EngineLogs, last_lines
from api.control.error_response import error_response
from api.control.streams import UNBUFFERED
from api.http.errors import api_error
from instance_manager.backends.params import mask_command
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.types import InstanceState

router = APIRouter(tags=["llama-swap"])

_WORDS = {
    InstanceState.RUNNING: "ready",
    InstanceState.SLEEPING: "sleeping",
    InstanceState.STOPPING: "stopping",
}  # of all others: "starting"
_ALL_LOGS, _OWN_LOG = "upstream", "proxy"  # llama-swap's names

Force = Annotated[bool, Query(description="Do not wait for requests in flight")]
Tail = Annotated[int, Query(ge=0, le=100_000, description="Number of most recent lines of each engine")]


@router.get("/running", summary="The models that have an engine")
async def running(request: Request, fleet: Models) -> dict[str, Any]:
    """Of those that the caller's key may use. Commands and addresses are for admins."""
    shown = [model for model in fleet.models if model.live and may_see(request.scope, model)]
    return {"running": [_running(model, public=not is_admin(request.scope)) for model in shown]}


def _running(model: Model, *, public: bool) -> dict[str, Any]:
    instance = next((one for one in model.live if one.gate.is_open), model.live[0])
    return {
        "model": model.name,
        "state": _WORDS.get(instance.state, "starting"),
        "cmd": "" if public else shlex.join(mask_command(instance.command)),
        "proxy": "" if public or instance.port is None else f"http://{instance.host}:{instance.port}",
        "ttl": int(instance.idle_timeout_s),
        "name": model.name,
        "description": "",
    }


@router.get("/unload", summary="Stop all models", response_class=PlainTextResponse)
@router.post("/unload", summary="Stop all models", response_class=PlainTextResponse)
async def unload(fleet: Models, force: Force = False) -> str:
    """Requests in flight are completed first, unless forced; the next request for a model starts it again."""
    await _stop_all(fleet, force)
    return "OK"


@router.post("/api/models/unload", summary="Stop all models")
async def unload_all(fleet: Models, force: Force = False) -> dict[str, str]:
    await _stop_all(fleet, force)
    return {"msg": "ok"}


@router.post("/api/models/unload/{name:path}", summary="Stop a model", response_class=PlainTextResponse)
async def unload_one(name: str, fleet: Models) -> str:
    await fleet.stop(fleet.find(name))
    return "OK"


async def _stop_all(fleet: Fleet, force: bool) -> None:
    up = [model for model in fleet.models if model.live or model.is_starting or model.start_requested]
    await asyncio.gather(*(fleet.stop(model, force=force) for model in up))


@router.get("/logs", summary="The last lines of all engines' logs", response_class=PlainTextResponse)
async def logs(manager: Manager, tail: Tail = 100) -> str:
    """Each line begins with the instance's id. Berth's own log is its standard error, or LOG_FILE."""
    return "".join(last_lines(manager, tail))


@router.get("/logs/stream", summary="All engines' logs as they grow", response_class=StreamingResponse)
async def stream_logs(request: Request, manager: Manager, tail: Tail = 100) -> Response:
    """Also those of engines that start later. With `?no-history` only new lines."""
    return _stream(EngineLogs(manager), request, tail)


@router.get("/logs/stream/{name:path}", summary="A model's log as it grows", response_class=StreamingResponse)
async def stream_log(
    name: str, request: Request, fleet: Models, manager: Manager, tail: Tail = 100
) -> Response:
    """`upstream` stands for all engines, unless a model has this name."""
    if fleet.known(name) is None and name == _ALL_LOGS:
        return _stream(EngineLogs(manager), request, tail)
    if fleet.known(name) is None and name == _OWN_LOG:
        message = "Berth's own log is its standard error, or the file that LOG_FILE names"
        return error_response(api_error(400, message, "invalid_request_error", param="name"))
    return _stream(EngineLogs(manager, only=fleet.find(name)), request, tail)


def _stream(logs: EngineLogs, request: Request, tail: int) -> Response:
    lines = logs.follow(0 if "no-history" in request.query_params else tail)
    return StreamingResponse(lines, media_type="text/plain", headers=UNBUFFERED)
