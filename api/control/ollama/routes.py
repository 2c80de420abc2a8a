"""Ollama's routes that ask no model; `/models/…` does the same in Berth's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from api.access.keys import may_use
from api.control.catalog import Files
from api.control.ollama.bodies import CopyBody, NamedBody, read_body, refusal
from api.control.ollama.fleet_models import FleetModels
from api.control.ollama.listing import Listing
from api.control.ollama.pulls import STARTED, SUCCEEDED, last_of, ollama_lines
from api.control.pull import LineStream, then_known
from api.protocols.ollama.names import plain
from api.protocols.ollama.served_models import not_found
from instance_manager.backends import backend_of
from instance_manager.fleet.models import Model
from instance_manager.hub.removal import remove_model

# Of Ollama's API as it is here; some clients refuse older ones.
API_VERSION = "0.12.11"
RUNNING = "Ollama is running"

router = APIRouter(tags=["Ollama's API"])


def _models(request: Request) -> FleetModels:
    models: FleetModels = request.app.state.ollama.models
    return models


def _listing(request: Request) -> Listing:
    listing: Listing = request.app.state.ollama.listing
    return listing


Models = Annotated[FleetModels, Depends(_models)]
Lists = Annotated[Listing, Depends(_listing)]


@router.get("/", summary="Ollama's sign of life; browsers are led to /docs", response_class=Response)
async def root(request: Request) -> Response:
    server = request.scope.get("server") or (None, None)
    is_for_ollama = server[1] == request.app.state.ollama.port
    if "text/html" in request.headers.get("accept", "") and not is_for_ollama:
        return RedirectResponse("docs")
    return PlainTextResponse(RUNNING)


@router.get("/api/version", summary="The version of Ollama's API, and Berth's")
async def version(request: Request) -> dict[str, str]:
    return {"version": API_VERSION, "berth": request.app.version}


@router.get("/api/tags", summary="The models that may be asked for, as Ollama lists them")
async def tags(request: Request, listing: Lists) -> dict[str, Any]:
    return {"models": await asyncio.to_thread(listing.tags, request.scope)}


@router.get("/api/ps", summary="The models that are loaded, as Ollama lists them")
async def ps(request: Request, listing: Lists) -> dict[str, Any]:
    return {"models": await asyncio.to_thread(listing.loaded, request.scope)}


@router.post("/api/show", summary="Everything about a model, as Ollama shows it")
async def show(request: Request, models: Models, listing: Lists) -> dict[str, Any]:
    """`model`: its name. Context and capabilities are those of the model as it is served."""
    called = (await read_body(request, NamedBody)).called
    if models.known(called) is None:
        shown = await asyncio.to_thread(listing.shown_of_peer, request.scope, called)
        if shown is not None:
            return shown
    _, model = _known(models, called)
    if not may_use(request.scope, model):
        raise refusal(not_found(called), 404)
    return await asyncio.to_thread(listing.shown, model, called)


@router.post(
    "/api/pull", summary="Download a model from the hub, with Ollama's progress", response_class=Response
)
async def pull(request: Request, models: Models, files: Files) -> Response:
    """`model`: `owner/name` on the hub, also as `hf.co/owner/name`. Local models need no download."""
    body = await read_body(request, NamedBody)
    wanted, streams = plain(body.called), body.stream is not False
    if (found := models.known(body.called)) is not None:
        hub_id = _hub_id(*found)
        if hub_id is None:
            return _is_here(streams)
        wanted = hub_id
    if "/" not in wanted:
        raise refusal(
            f"pull model manifest: {body.called!r} is a name of Ollama's own library, which Berth doesn't "
            "use; name a model on the hub, owner/name"
        )
    pulls = request.app.state.pulls
    pulls.check(wanted)
    lines = ollama_lines(wanted, then_known(pulls.follow(wanted), files))
    if streams:
        return LineStream(lines)
    last = await last_of(lines)
    return JSONResponse(last, 500 if "error" in last else 200)


def _hub_id(name: str, model: Model) -> str | None:
    """Where a model's files come from; None if they are a folder of this machine, or its command's matter."""
    profile = model.profile
    if profile is None:
        return None
    folder = f"models--{name.partition(':')[0].replace('/', '--')}"
    if "/" in name and folder in PurePath(profile.model).parts:
        return name
    is_id = "/" in profile.model and not profile.model.startswith("/")
    return profile.model if is_id and backend_of(profile.engine).finds_model else None


def _is_here(streams: bool) -> Response:
    """The response for a model that needs no download."""
    text = "".join(json.dumps(line) + "\n" for line in (STARTED, SUCCEEDED))
    return Response(text, media_type="application/x-ndjson") if streams else JSONResponse(SUCCEEDED)


@router.delete("/api/delete", summary="Delete a downloaded model, or an alias", response_class=Response)
async def delete(request: Request, models: Models, files: Files) -> Response:
    """`model`: its name. Folders that Berth did not download are never touched."""
    called = (await read_body(request, NamedBody)).called
    name, model = _known(models, called)
    profile = model.profile
    if profile is not None and name in profile.aliases:
        aliases = [alias for alias in profile.aliases if alias != name]
        await _set_aliases(files, model, aliases, profile.alias_params)
    else:
        here = name if profile is None else profile.model
        await _remove(_hub_id(name, model) or here, model, files, request)
    return Response(status_code=200)


async def _remove(hub_id: str, model: Model, files: Files, request: Request) -> None:
    """Raises what `remove_model` raises."""
    pulls, config = request.app.state.pulls, request.app.state.manager.config
    await remove_model(
        hub_id,
        env=config.engine_env,
        model_dirs=config.model_dirs,
        in_use=lambda repository: bool(model.live) or pulls.is_pulling(repository),
    )
    await files.refresh()


@router.post("/api/copy", summary="Give a model another name", response_class=Response)
async def copy(request: Request, models: Models, files: Files) -> Response:
    """`source`, `destination`: an alias, which is written to models.yaml; no file is copied."""
    body = await read_body(request, CopyBody)
    source, destination = body.source, plain(body.destination)
    if not source or not destination:
        raise refusal(f'{"destination" if source else "source"} "" is invalid')
    name, model = _known(models, source)
    if (taken := models.known(destination)) is not None:
        if taken[1] is model:
            return Response(status_code=200)
        raise refusal(f"destination {body.destination!r} is already a model; delete it first", 409)
    if model.profile is None:
        raise refusal(
            f"{source!r} is not in the catalog, as it was created with POST /instances: it can't be copied"
        )
    params = model.profile.alias_params
    copied = {**params, destination: params.get(name, {})}
    await _set_aliases(files, model, [*model.profile.aliases, destination], copied)
    return Response(status_code=200)


async def _set_aliases(
    files: Files, model: Model, aliases: list[str], params: Mapping[str, Mapping[str, Any]]
) -> None:
    """`params`: the fields that each sets in its requests; those of others are removed."""
    kept = {alias: dict(fields) for alias, fields in params.items() if fields and alias in aliases}
    await files.edit(model, {"aliases": aliases or None, "alias_params": kept or None})


_REFUSED = {
    "create": "create is not supported: Berth has no Modelfiles; describe the model in models.yaml",
    "push": "push is not supported: Berth uploads no models",
    "blobs": "blobs are not supported: put a model's files into a folder of MODEL_DIRS",
}


@router.post("/api/create", summary="Refused: Berth has no Modelfiles")
async def create() -> None:
    raise refusal(_REFUSED["create"])


@router.post("/api/push", summary="Refused: Berth uploads no models")
async def push() -> None:
    raise refusal(_REFUSED["push"])


@router.post("/api/blobs/{digest}", summary="Refused: Berth creates no models from uploads")
async def create_blob(digest: str) -> None:
    raise refusal(_REFUSED["blobs"])


def _known(models: FleetModels, called: str) -> tuple[str, Model]:
    """Raises RequestRefused, in Ollama's words."""
    found = models.known(called)
    if found is None:
        raise refusal(not_found(called), 404)
    return found
