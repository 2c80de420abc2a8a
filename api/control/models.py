"""Models by name: list, start, stop, sleep and wake. `/v1/models` is OpenAI's list."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from api.access.keys import caller_of, is_admin, may_use
from api.control.deps import Manager
from api.control.schemas import STOP_LEVEL, SleepLevel
from api.http.asgi import Scope
from instance_manager.backends.params import mask_params
from instance_manager.errors import ModelNotFound, WrongState
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.lifecycle.instance import Instance, failure_record
from instance_manager.state.peers import names_of
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import InstanceState

router = APIRouter(tags=["models"])

_SETTLED = (InstanceState.RUNNING, InstanceState.SLEEPING)


def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


Models = Annotated[Fleet, Depends(_fleet)]
Wait = Annotated[
    float, Query(ge=0, le=3600, allow_inf_nan=False, description="Seconds to wait until it runs")
]


@router.get("/v1/models/", include_in_schema=False)  # for clients that add a slash
@router.get("/v1/models", summary="OpenAI's list of models, with `status`")
async def list_openai_models(request: Request, fleet: Models) -> dict[str, Any]:
    """The models that the caller's key may use, including those of other nodes on the same state store."""
    caller = caller_of(request.scope)
    public = not is_admin(request.scope)
    usable = [model for model in fleet.models if may_use(request.scope, model)]
    local = [entry for model in usable for entry in openai_entries(model, public=public)]
    remote = [
        remote_entry(name, record)
        for name, record in sorted(fleet.manager.peers.models().items())
        if not is_listed(fleet, name) and caller.may_use((name, *names_of(record)))
    ]
    return {"object": "list", "data": [_shown(entry, request.scope) for entry in (*local, *remote)]}


@router.get("/v1/models/{name:path}", summary="Get one model of OpenAI's list")
async def get_openai_model(name: str, request: Request, fleet: Models) -> dict[str, Any]:
    if not is_listed(fleet, name):
        record = fleet.manager.peers.models().get(name)
        if record is not None and caller_of(request.scope).may_use((name, *names_of(record))):
            return _shown(remote_entry(name, record), request.scope)
    model = fleet.find(name)
    if not may_use(request.scope, model):
        raise ModelNotFound(f"this API key may not use model {name!r}; see GET /v1/models", param="model")
    entries = openai_entries(model, name, public=not is_admin(request.scope))
    entry = next(entry for entry in entries if entry["id"] == name)
    return _shown(entry, request.scope)


def _shown(entry: dict[str, Any], scope: Scope) -> dict[str, Any]:
    """Hide the model's path on this machine from callers who are not admins."""
    is_path = "/" in entry["root"] and PurePath(entry["root"]).is_absolute()
    return entry if is_admin(scope) or not is_path else entry | {"root": entry["id"]}


@router.get("/models", summary="List models with everything Berth knows about them")
async def list_models(fleet: Models) -> dict[str, Any]:
    return {"object": "list", "data": [model_record(model) for model in fleet.models]}


@router.get("/models/{name:path}", summary="Get one model's record")
async def get_model(name: str, fleet: Models) -> dict[str, Any]:
    return model_record(fleet.find(name))


@router.post("/models/{name:path}/start", summary="Start a replica unless one is running")
async def start_model(name: str, fleet: Models, wait: Wait = 0) -> dict[str, Any]:
    model = fleet.find(name)
    model.reset_backoff()
    return await _up(fleet, model, wait)


@router.post("/models/{name:path}/wake", summary="Wake the model if it sleeps")
async def wake_model(name: str, fleet: Models, wait: Wait = 600) -> dict[str, Any]:
    return await _up(fleet, fleet.find(name), wait)


@router.post("/models/{name:path}/sleep", summary="Put the model's replicas to sleep; a request wakes one")
async def sleep_model(name: str, fleet: Models, manager: Manager, level: SleepLevel = 1) -> dict[str, Any]:
    model = fleet.find(name)
    if level == STOP_LEVEL:
        await fleet.stop(model)
        return model_record(model)
    if not model.live:
        raise WrongState(f"model {name!r} can't be put to sleep, as it is not running")
    for instance in model.live:
        await manager.sleep(instance.instance_id, level)
    return model_record(model)


@router.post("/models/{name:path}/stop", summary="Stop the model's replicas; a request starts one again")
async def stop_model(name: str, fleet: Models, force: bool = False) -> dict[str, Any]:
    """A failed model becomes stopped, and the delay before its next start is reset."""
    model = fleet.find(name)
    await fleet.stop(model, force=force)
    return model_record(model)


@router.post("/models/{name:path}/restart", summary="Stop the model's replicas and start one again")
async def restart_model(
    name: str, fleet: Models, manager: Manager, request: Request, wait: Wait = 0
) -> dict[str, Any]:
    """Uses the catalog's current profile; if that can't be started, running replicas are left alone."""
    model = fleet.find(name)
    await request.app.state.model_files.check_startable(model)
    for instance in model.live:
        await manager.stop(instance.instance_id)
    model.reset_backoff()
    return await _up(fleet, model, wait)


async def _up(fleet: Fleet, model: Model, wait_s: float) -> dict[str, Any]:
    fleet.request_start(model)
    if wait_s > 0:
        await fleet.wait_until_up(model, wait_s)
        is_underway = model.is_starting or model.start_requested  # then the error is an earlier start's
        if model.error is not None and not (model.awake or is_underway):
            raise type(model.error)(str(model.error), param=model.error.param)
    return model_record(model)


def is_listed(fleet: Fleet, name: str) -> bool:
    """Whether this node itself lists a model of this name."""
    model = fleet.known(name)
    return model is not None and model.is_listed


def openai_entries(model: Model, *names: str, public: bool) -> list[dict[str, Any]]:
    """Entries for all names of a model and `names`; an alias's root and parent are the model.

    `public`: for callers that may not read logs.
    """
    entry = openai_entry(model, public=public)
    others = dict.fromkeys((*(model.profile.other_names if model.profile else ()), *names))
    others.pop(model.name, None)
    return [entry, *({**entry, "id": name, "root": model.name, "parent": model.name} for name in others)]


def openai_entry(model: Model, *, public: bool) -> dict[str, Any]:
    """A model in the format of OpenAI and vLLM."""
    profile = model.profile
    replica = next(iter(model.replicas.values()), None)
    limit = (replica.plan.params if replica else profile.params if profile else {}).get("max_model_len")
    created = min((instance.created_at for instance in model.replicas.values()), default=0)
    return {
        "id": model.name,
        "object": "model",
        "created": int(created),
        "owned_by": "berth",
        "root": profile.model if profile else (replica.model_name if replica else model.name),
        "parent": None,
        "max_model_len": limit,
        "status": model.status,
        "problem": model.problem(public=public),
    }


def remote_entry(name: str, record: InstanceRecord) -> dict[str, Any]:
    """The same for a model that only another node knows, by one of its names."""
    model = names_of(record)[0]
    is_alias = record.spec.profile is not None and name != model
    return {
        "id": name,
        "object": "model",
        "created": int(record.created_at),
        "owned_by": "berth",
        "root": model if is_alias else record.model_name,
        "parent": model if is_alias else None,
        "max_model_len": record.params.get("max_model_len"),
        "status": record.state.value if record.state in _SETTLED else "starting",
        "problem": None,
    }


def _engine_reason(profile: ModelProfile | None, latest: Instance | None) -> str | None:
    """Why the model has its engine."""
    named = profile or (None if latest is None else latest.spec)
    return None if named is None else named.engine_reason or None


def model_record(model: Model) -> dict[str, Any]:
    """Everything known about a model. Times are seconds since the epoch."""
    profile = model.profile
    replicas = list(model.replicas.values())
    live = model.live
    latest = replicas[-1] if replicas else None
    failure = next(
        (instance.failure for instance in reversed(replicas) if instance.failure is not None), None
    )
    error: dict[str, Any] | None = None
    if model.error is not None:
        error = {"class": model.error.code, "message": str(model.error)}
        if failure is not None:
            error = failure_record(failure) | {"message": str(model.error)}
    return {
        "name": model.name,
        "model": profile.model if profile else (latest.model_name if latest else model.name),
        "engine": profile.engine if profile else (latest.spec.engine if latest else None),
        "engine_reason": _engine_reason(profile, latest),
        "status": model.status,
        "problem": model.problem(),
        "source": profile.source.value if profile else "instance",
        "aliases": list(profile.aliases) if profile else [],
        "size_bytes": profile.size_bytes if profile else None,
        "modified": profile.modified if profile else None,
        "pinned": profile.pinned if profile else any(instance.pinned for instance in live),
        "params": mask_params(profile.params if profile else (latest.plan.params if latest else {})),
        "devices": list(profile.devices) if profile and profile.devices is not None else None,
        "timeout": profile.idle_timeout_s if profile else (latest.idle_timeout_s if latest else None),
        "replicas": [instance.instance_id for instance in live],
        "in_flight": model.in_flight,
        "queued": len(model.queue),
        "memory_bytes": sum(instance.memory_bytes or 0 for instance in live) if live else None,
        "last_used": max((each.last_active_at for each in replicas if each.ready_at), default=None),
        "error": error,
    }
