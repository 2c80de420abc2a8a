"""LM Studio's REST API: its lists of models (v1, and v0 before it), load, unload and download."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import StrictBool, StrictInt, StrictStr

from api.control.deps import AllDownloads, Facts, Manager, Models
from api.control.dialect_body import DialectBody, ModelBody, documented, read_body
from api.control.error_response import error_response
from api.control.model_view import LoadState, load_state
from api.control.models import find_usable, listed_for
from api.http.errors import ApiError, api_error
from instance_manager.errors import InstanceNotFound
from instance_manager.fleet.model_facts import ModelFacts
from instance_manager.fleet.models import Model
from instance_manager.hub.downloads import Job, JobState

router = APIRouter(tags=["LM Studio"])

_LONGEST_LOAD_S = 3600.0
_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
_HUB = "huggingface.co/"


class LoadRequest(ModelBody):
    """The body of `POST /api/v1/models/load`. The last three are hints, which change no answer."""

    context_length: StrictInt | None = None
    num_experts: StrictInt | None = None
    config: dict[str, Any] | None = None  # the same fields, in earlier versions
    echo_load_config: StrictBool = False
    eval_batch_size: Any = None
    flash_attention: Any = None
    offload_kv_cache_to_gpu: Any = None


class UnloadRequest(DialectBody):
    """The body of `POST /api/v1/models/unload`."""

    instance_id: StrictStr


class DownloadRequest(ModelBody):
    """The body of `POST /api/v1/models/download`."""

    quantization: StrictStr | None = None


@router.get("/api/v1/models", summary="The models, as LM Studio lists them")
async def list_models(request: Request, fleet: Models, facts: Facts) -> dict[str, Any]:
    """Those that the caller's key may use."""
    usable = listed_for(request, fleet)
    return {"models": [_entry(model, facts.of(model)) for model in usable]}


@router.get("/api/v0/models", summary="The models, as earlier versions of LM Studio list them")
async def list_models_v0(request: Request, fleet: Models, facts: Facts) -> dict[str, Any]:
    usable = listed_for(request, fleet)
    return {"object": "list", "data": [_entry_v0(model, facts.of(model)) for model in usable]}


@router.get("/api/v0/models/{name:path}", summary="One model of that list")
async def get_model_v0(name: str, request: Request, fleet: Models, facts: Facts) -> dict[str, Any]:
    model = find_usable(request, fleet, name)
    return _entry_v0(model, facts.of(model))


@router.post(
    "/api/v1/models/load",
    summary="Start a model, and wait until it runs",
    openapi_extra=documented(LoadRequest),
)
async def load_model(request: Request, response: Response, fleet: Models, facts: Facts) -> Any:
    """What the model is loaded with is its entry in models.yaml: another context length is refused."""
    body = await read_body(LoadRequest, request, response)
    model = fleet.find(body.model)
    known = facts.of(model)
    if (refusal := _refusal(body, known)) is not None:
        return error_response(refusal)
    began = time.monotonic()
    model.reset_backoff()
    fleet.request_start(model)
    await fleet.wait_until_up(model, _LONGEST_LOAD_S)
    if model.error is not None and not model.awake:
        raise model.error
    config = {} if known.context_length is None else {"context_length": known.context_length}
    return {
        "type": _kind(known),
        "instance_id": model.name,
        "load_time_seconds": round(time.monotonic() - began, 3),
        "status": "loaded",
        **({"load_config": config} if body.echo_load_config else {}),
    }


@router.post(
    "/api/v1/models/unload", summary="Stop a model, or one instance", openapi_extra=documented(UnloadRequest)
)
async def unload_model(
    request: Request, response: Response, fleet: Models, manager: Manager
) -> dict[str, str]:
    body = await read_body(UnloadRequest, request, response)
    model = fleet.known(body.instance_id)
    if model is not None:
        await fleet.stop(model)
        return {"instance_id": body.instance_id}
    try:
        await manager.stop(body.instance_id)
    except InstanceNotFound:
        fleet.find(body.instance_id)  # the more helpful error
        raise
    return {"instance_id": body.instance_id}


@router.post(
    "/api/v1/models/download",
    summary="Download a model in the background",
    openapi_extra=documented(DownloadRequest),
)
async def download_model(request: Request, response: Response, fleet: Models, downloads: AllDownloads) -> Any:
    body = await read_body(DownloadRequest, request, response)
    name = body.model.partition(_HUB)[2].strip("/") if _HUB in body.model else body.model
    name = f"{name}:{body.quantization}" if body.quantization else name
    model = fleet.known(name)
    if model is not None and model.profile is not None and model.profile.size_bytes is not None:
        return {"status": "already_downloaded"}
    return _job(downloads.start(name))


@router.get("/api/v1/models/download/status", summary="All downloads in the background")
async def all_download_states(downloads: AllDownloads) -> dict[str, Any]:
    shown: dict[str, list[dict[str, Any]]] = {"downloading": [], "completed": [], "failed": [], "paused": []}
    for job in downloads.jobs.values():
        shown[job.state.value].append(_job(job))
    return shown


@router.get("/api/v1/models/download/status/{job_id}", summary="A download in the background")
async def download_state(job_id: str, downloads: AllDownloads) -> Any:
    job = downloads.jobs.get(job_id)
    if job is None:
        return error_response(api_error(404, f"there is no download job {job_id!r}", "not_found_error"))
    return _job(job)


def _entry(model: Model, facts: ModelFacts) -> dict[str, Any]:
    kind, profile = _kind(facts), model.profile
    entry: dict[str, Any] = {
        "type": kind,
        "publisher": _publisher(model),
        "key": model.name,
        "display_name": model.name,
        "architecture": facts.family,
        "quantization": _quantization(facts),
        "size_bytes": (profile.size_bytes if profile else None) or 0,
        "params_string": None,
        "loaded_instances": _loaded(model, facts),
        "max_context_length": facts.context_length or 0,
        "format": "gguf" if facts.format == "gguf" else None,
    }
    if kind == "llm":
        entry["capabilities"] = {
            "vision": "image" in facts.inputs,
            "trained_for_tool_use": bool(facts.tools),
        }
        entry["description"] = None
    return entry


def _entry_v0(model: Model, facts: ModelFacts) -> dict[str, Any]:
    state = load_state(model)
    is_llm = _kind(facts) == "llm"
    entry: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "type": ("vlm" if "image" in facts.inputs else "llm") if is_llm else "embeddings",
        "publisher": _publisher(model),
        "arch": facts.family,
        # Clients know two values. The other one, too, is a folder of safetensors files.
        "compatibility_type": "gguf" if facts.format == "gguf" else "mlx",
        "quantization": facts.quantization,
        "state": {LoadState.LOADED: "loaded", LoadState.LOADING: "loading"}.get(state, "not-loaded"),
        "max_context_length": facts.context_length,
        "capabilities": ["tool_use"] if facts.tools and is_llm else [],
    }
    if state is LoadState.LOADED:
        entry["loaded_context_length"] = facts.context_length
    return entry


def _loaded(model: Model, facts: ModelFacts) -> list[dict[str, Any]]:
    """The first has the model's name: with it clients request the model, and unload it."""
    ids = [model.name if index == 0 else one.instance_id for index, one in enumerate(model.awake)]
    config = {} if facts.context_length is None else {"context_length": facts.context_length}
    return [{"id": name, "config": config} for name in ids]


def _kind(facts: ModelFacts) -> str:
    return "embedding" if facts.embeddings or facts.rerank else "llm"


def _publisher(model: Model) -> str:
    """The owner on the hub; empty for a model from elsewhere."""
    names = (model.name, model.profile.model if model.profile else "")
    return next((name.partition("/")[0] for name in names if "/" in name and name[0] != "/"), "")


def _quantization(facts: ModelFacts) -> dict[str, Any] | None:
    if facts.quantization is None:
        return None
    return {"name": facts.quantization, "bits_per_weight": _BITS.get(facts.quantization)}


def _refusal(body: LoadRequest, facts: ModelFacts) -> ApiError | None:
    """A field that would change the answers, and that this model's entry decides."""
    given = {**(body.config or {}), **body.model_dump(exclude_unset=True)}
    for field, own in (("context_length", facts.context_length), ("num_experts", None)):
        if given.get(field) not in (None, own):
            shown = "" if own is None else f" (it is {own})"
            message = (
                f"{field} is set in the model's entry in models.yaml{shown}, not per load; change it there"
            )
            return api_error(400, message, "invalid_request_error", param=field)
    return None


def _job(job: Job) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "job_id": job.job_id,
        "status": job.state.value,
        "total_size_bytes": job.total,
        "downloaded_bytes": job.done,
        "started_at": _iso(job.started_at),
    }
    if job.state is JobState.DOWNLOADING:
        elapsed_s = max(time.time() - job.started_at, 1e-3)
        speed = job.done / elapsed_s
        shown["bytes_per_second"] = speed
        if speed > 0 and job.total:
            shown["estimated_completion"] = _iso(time.time() + (job.total - job.done) / speed)
    elif job.state is JobState.COMPLETED and job.ended_at is not None:
        shown["completed_at"] = _iso(job.ended_at)
    return shown


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
