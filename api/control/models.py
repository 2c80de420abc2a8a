"""Models by name: list, start, stop, sleep and wake. `/v1/models` is OpenAI's list."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.access.keys import caller_of, is_admin, may_use
from api.control.catalog import Files
from api.control.deps import AllPulls, Facts, Manager, Models
from api.control.model_view import (
    downloading,
    hide_path,
    model_record,
    openai_entries,
    openai_entry,
    remote_entry,
)
from api.control.schemas import STOP_LEVEL, SleepLevel
from instance_manager.errors import ModelNotFound, WrongState
from instance_manager.fleet.file_description import full_description
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.state.peers import is_unlisted, names_of

router = APIRouter(tags=["models"])

Wait = Annotated[
    float, Query(ge=0, le=3600, allow_inf_nan=False, description="Seconds to wait until it runs")
]


@router.get("/v1/models/", include_in_schema=False)  # for clients that add a slash
@router.get("/v1/models", summary="OpenAI's list of models, with `status` and what each can do")
async def list_openai_models(request: Request, fleet: Models, facts: Facts) -> dict[str, Any]:
    """The models that the caller's key may use, including those of other nodes on the same state store."""
    caller, public = caller_of(request.scope), not is_admin(request.scope)
    usable = listed_for(request, fleet)
    local = [entry for model in usable for entry in openai_entries(model, facts, public=public)]
    remote = [
        hide_path(remote_entry(name, record), public=public)
        for name, record in sorted(fleet.manager.peers.models().items())
        if not (is_listed(fleet, name) or is_unlisted(record)) and caller.may_use((name, *names_of(record)))
    ]
    return {"object": "list", "data": [*local, *remote]}


@router.get("/v1/models/{name:path}", summary="Get one model of OpenAI's list")
async def get_openai_model(name: str, request: Request, fleet: Models, facts: Facts) -> dict[str, Any]:
    public = not is_admin(request.scope)
    if not is_listed(fleet, name):
        record = fleet.manager.peers.models().get(name)
        if record is not None and caller_of(request.scope).may_use((name, *names_of(record))):
            return hide_path(remote_entry(name, record), public=public)
    model = find_usable(request, fleet, name)
    entries = openai_entries(model, facts, name, public=public)
    return next(entry for entry in entries if entry["id"] == name)


def listed_for(request: Request, fleet: Fleet) -> list[Model]:
    """The models that the caller's key may use, without those that are in no list for clients."""
    return [model for model in fleet.models if may_use(request.scope, model) and not model.is_unlisted]


def find_usable(request: Request, fleet: Fleet, name: str) -> Model:
    """The model of this name. Raises ModelNotFound, also for one that the caller's key may not use."""
    model = fleet.find(name)
    if not may_use(request.scope, model):
        raise ModelNotFound(f"this API key may not use model {name!r}; see GET /v1/models", param="model")
    return model


@router.get("/models", summary="List models with everything Berth knows about them")
async def list_models(
    request: Request,
    fleet: Models,
    facts: Facts,
    pulls: AllPulls,
    files: Files,
    reload: Annotated[str, Query(description="Any value: look at the folders of models again first")] = "",
) -> dict[str, Any]:
    """With a key for requests: what `/v1/models` tells it, else also what is unlisted.

    Includes models that are being downloaded.
    """
    public = not is_admin(request.scope)
    if reload and not public:
        await files.refresh()
    usable = listed_for(request, fleet) if public else fleet.models
    coming = [
        downloading(Model(name, None, 0, lambda: 0.0), progress, facts, public=public)
        for name, progress in sorted(pulls.progress().items())
        if not is_listed(fleet, name) and caller_of(request.scope).may_use((name,))
    ]
    shown = [
        openai_entry(model, facts.of(model), public=True) if public else model_record(model, facts)
        for model in usable
    ]
    return {"object": "list", "data": [*shown, *coming]}


@router.get("/models/{name:path}", summary="Get one model's record")
async def get_model(name: str, fleet: Models, facts: Facts) -> dict[str, Any]:
    """For GGUF files, `description` is complete here, and lacks in lists what lies after the vocabulary."""
    model = fleet.find(name)
    about = await asyncio.to_thread(full_description, model.profile, fleet.manager.config)
    return model_record(model, facts) | {"description": about}


@router.post("/models/{name:path}/start", summary="Start a replica unless one is running")
async def start_model(name: str, fleet: Models, facts: Facts, wait: Wait = 0) -> dict[str, Any]:
    model = fleet.find(name)
    model.reset_backoff()
    return await _up(fleet, facts, model, wait)


@router.post("/models/{name:path}/wake", summary="Wake the model if it sleeps")
async def wake_model(name: str, fleet: Models, facts: Facts, wait: Wait = 600) -> dict[str, Any]:
    return await _up(fleet, facts, fleet.find(name), wait)


@router.post("/models/{name:path}/sleep", summary="Put the model's replicas to sleep; a request wakes one")
async def sleep_model(
    name: str, fleet: Models, facts: Facts, manager: Manager, level: SleepLevel = 1
) -> dict[str, Any]:
    model = fleet.find(name)
    if level == STOP_LEVEL:
        await fleet.stop(model)
        return model_record(model, facts)
    if not model.live:
        raise WrongState(f"model {name!r} can't be put to sleep, as it is not running")
    for instance in model.live:
        await manager.sleep(instance.instance_id, level)
    return model_record(model, facts)


@router.post("/models/{name:path}/stop", summary="Stop the model's replicas; a request starts one again")
async def stop_model(name: str, fleet: Models, facts: Facts, force: bool = False) -> dict[str, Any]:
    """A failed model becomes stopped, and the delay before its next start is reset."""
    model = fleet.find(name)
    await fleet.stop(model, force=force)
    return model_record(model, facts)


@router.post("/models/{name:path}/restart", summary="Stop the model's replicas and start one again")
async def restart_model(
    name: str, fleet: Models, facts: Facts, manager: Manager, request: Request, wait: Wait = 0
) -> dict[str, Any]:
    """Uses the catalog's current profile; if that can't be started, running replicas are left alone."""
    model = fleet.find(name)
    await request.app.state.model_files.check_startable(model)
    for instance in model.live:
        await manager.stop(instance.instance_id)
    model.reset_backoff()
    return await _up(fleet, facts, model, wait)


async def _up(fleet: Fleet, facts: Facts, model: Model, wait_s: float) -> dict[str, Any]:
    fleet.request_start(model)
    if wait_s > 0:
        await fleet.wait_until_up(model, wait_s)
        is_underway = model.is_starting or model.start_requested  # then the error is an earlier start's
        if model.error is not None and not (model.awake or is_underway):
            raise type(model.error)(str(model.error), param=model.error.param)
    return model_record(model, facts)


def is_listed(fleet: Fleet, name: str) -> bool:
    """Whether this node itself lists a model of this name."""
    model = fleet.known(name)
    return model is not None and model.is_listed
