"""llama.cpp's model management, as its server has it in router mode: Open WebUI and other clients speak it.

`GET /models` itself is in models.py. A model may be named `sse`, too: see `stream_model_events`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import JSONResponse, StreamingResponse

from api.access.keys import caller_of, is_admin, may_see
from api.control.catalog import Files, delete_files
from api.control.deps import AllDownloads, AllPulls, Events, Facts, Manager, Models
from api.control.dialect_body import ModelBody, documented, read_body
from api.control.engine_page import engine_page
from api.control.error_response import error_response
from api.control.model_events import ALL, ModelEvent, ModelEvents
from api.control.model_view import LoadState, load_state, model_record
from api.control.models import find_usable
from api.control.streams import UNBUFFERED
from api.http.errors import api_error
from instance_manager.errors import ModelNotFound
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.model_facts import ModelFacts
from instance_manager.fleet.models import Model
from instance_manager.types import InstanceState

router = APIRouter(tags=["llama.cpp"])

_DONE = {"success": True}
_LONGEST_LOAD_S = 3600.0
_YES = ("true", "1")

Named = Annotated[str, Query(description="A model's name or alias")]
Autoload = Annotated[str, Query(description="`true`: start the model, and wait; `false`: it must be loaded")]


@router.post("/models/load", summary="Start a model, without waiting", openapi_extra=documented(ModelBody))
async def load_model(request: Request, response: Response, fleet: Models, events: Events) -> Any:
    body = await read_body(ModelBody, request, response)
    model = fleet.find(body.model)
    if load_state(model) in (LoadState.LOADED, LoadState.LOADING) and not _is_stopping(model):
        return _refused("model is already running")
    model.reset_backoff()
    fleet.request_start(model)
    events.watch_start(model)
    return _DONE


@router.post(
    "/models/unload", summary="Stop a model, or cancel its download", openapi_extra=documented(ModelBody)
)
async def unload_model(request: Request, response: Response, fleet: Models, downloads: AllDownloads) -> Any:
    """Requests in flight are completed first. `GET /unload` stops all models."""
    body = await read_body(ModelBody, request, response)
    if downloads.cancel(body.model):
        return _DONE
    model = fleet.find(body.model)
    if load_state(model) is LoadState.UNLOADED:
        return _refused("model is not running")
    await fleet.stop(model)
    return _DONE


@router.post("/models", summary="Download a model in the background", openapi_extra=documented(ModelBody))
async def download_model(request: Request, response: Response, fleet: Models, downloads: AllDownloads) -> Any:
    """`GET /models/sse` and `GET /models` report its progress, `POST /models/unload` cancels it."""
    body = await read_body(ModelBody, request, response)
    with suppress(ModelNotFound):
        known = fleet.find(body.model)
        if known.profile is not None and known.profile.size_bytes is not None:
            return _refused(f"model {body.model!r} already exists")
    downloads.start(body.model)
    return _DONE


@router.delete("/models", summary="Delete a downloaded model's files")
async def delete_model(
    model: Named, fleet: Models, files: Files, pulls: AllPulls, downloads: AllDownloads, events: Events
) -> dict[str, bool]:
    """A running model is stopped first, a download cancelled. Folders in MODEL_DIRS are never touched."""
    if downloads.cancel(model) and fleet.known(model) is None:
        events.removed(model)
        return _DONE
    found = fleet.find(model)
    if found.live and files.facts.of(found).is_in_cache:
        await fleet.stop(found)
    await delete_files(found, model, fleet, files, pulls, events)
    return _DONE


@router.get(
    "/models/sse",
    summary="Changes of models' states, as server-sent events",
    response_class=StreamingResponse,
)
async def stream_model_events(request: Request, fleet: Models, facts: Facts, events: Events) -> Any:
    """Of the models that the caller's key may use, in llama.cpp's format.

    If a model is named `sse`, this is its record, unless the request accepts `text/event-stream`.
    """
    wants_events = "text/event-stream" in request.headers.get("accept", "")
    if not wants_events and fleet.known("sse") is not None:
        model = find_usable(request, fleet, "sse")
        is_allowed = is_admin(request.scope)
        return JSONResponse(model_record(model, facts)) if is_allowed else error_response(_ADMIN_ONLY)
    return StreamingResponse(
        _lines(request, fleet, events), media_type="text/event-stream", headers=UNBUFFERED
    )


_ADMIN_ONLY = api_error(
    403,
    "this key may only send requests to engines; GET /v1/models/sse tells it of the model 'sse'",
    "permission_error",
    code="admin_key_required",
)


async def _lines(request: Request, fleet: Fleet, events: ModelEvents) -> AsyncIterator[bytes]:
    async for event in events.subscribe():
        if _may_know(request, fleet, event):
            yield b"data: " + json.dumps(event.to_json(), ensure_ascii=False).encode() + b"\n\n"


def _may_know(request: Request, fleet: Fleet, event: ModelEvent) -> bool:
    model = fleet.known(event.model)
    if event.model == ALL:
        return True
    return may_see(request.scope, model) if model else caller_of(request.scope).may_use((event.model,))


@router.get("/props", summary="Properties of Berth, or of a model's engine")
async def get_props(
    request: Request,
    fleet: Models,
    facts: Facts,
    manager: Manager,
    model: Named = "",
    autoload: Autoload = "",
) -> Any:
    """A running llama.cpp answers itself; of any other model this is what Berth knows.

    With `autoload=false`, as in llama.cpp: 400 if the model isn't loaded, 503 while it is being loaded.
    """
    if not model:
        return {
            "role": "router",
            "max_instances": manager.config.max_instances,
            "models_autoload": fleet.config.autostart,
            "model_alias": "berth",
            "model_path": "none",
            "default_generation_settings": {"params": {}, "n_ctx": 0},
            "build_info": f"berth-{request.app.version}",
        }
    found = find_usable(request, fleet, model)
    await _autoload(fleet, found, autoload)
    if autoload and (refusal := _not_loaded(found)) is not None:
        return refusal
    page = await engine_page(found, "/props")
    if page is not None:
        return page
    return _props_of(
        found, facts.of(found), build=f"berth-{request.app.version}", public=not is_admin(request.scope)
    )


@router.get("/slots", summary="The slots of a model's llama.cpp")
async def get_slots(request: Request, fleet: Models, model: Named = "", autoload: Autoload = "") -> Any:
    if not model:
        return _refused("model name is missing from the request: add ?model=")
    found = find_usable(request, fleet, model)
    await _autoload(fleet, found, autoload)
    page = await engine_page(found, "/slots")
    if page is not None:
        return page
    if (refusal := _not_loaded(found)) is not None:
        return refusal
    message = (
        f"the engine of model {model!r} has no slots: only llama.cpp has, unless started with --no-slots"
    )
    return error_response(api_error(501, message, "not_supported_error", param="model"))


async def _autoload(fleet: Fleet, model: Model, wish: str) -> None:
    """Only if the request asks for it: reading starts nothing otherwise. Raises the start's error."""
    if wish.lower() not in _YES or model.awake:
        return
    fleet.request_start(model)
    await fleet.wait_until_up(model, _LONGEST_LOAD_S)
    if model.error is not None and not model.awake:
        raise model.error


def _not_loaded(model: Model) -> Response | None:
    state = load_state(model)
    if state is LoadState.UNLOADED:
        return _refused("model is not loaded")
    if state is LoadState.LOADING:
        message = f"model {model.name!r} is being loaded"
        error = api_error(503, message, "unavailable_error", code="instance_starting", retry_after_s=1)
        return error_response(error)
    return None


def _props_of(model: Model, facts: ModelFacts, *, build: str, public: bool) -> dict[str, Any]:
    """The fields of llama.cpp's `/props` that are known without it."""
    props: dict[str, Any] = {
        "default_generation_settings": {"params": {}, "n_ctx": facts.context_length or 0},
        "model_alias": model.name,
        "model_path": "none" if public or facts.path is None else str(facts.path),
        "build_info": build,
        "is_sleeping": load_state(model) is LoadState.SLEEPING,
    }
    if facts.inputs:
        props["modalities"] = {"vision": "image" in facts.inputs, "audio": "audio" in facts.inputs}
    if facts.chat_template is not None:
        props["chat_template"] = facts.chat_template
    return props


def _is_stopping(model: Model) -> bool:
    return bool(model.live) and all(one.state is InstanceState.STOPPING for one in model.live)


def _refused(message: str) -> Response:
    """Some clients compare messages: llama.cpp's are used where it has one."""
    return error_response(api_error(400, message, "invalid_request_error", param="model"))
