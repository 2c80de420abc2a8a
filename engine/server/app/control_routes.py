"""Routes about the engine itself: sleep, wake up, what it holds; forget the prefix cache, abort requests.

Whoever reaches them can stop everybody's work, so all but the abort exist only where the server was started
with --enable-sleep-mode (or VLLM_SERVER_DEV_MODE=1, without which vLLM doesn't have them either).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.core.sleep import ALL_PARTS, SLEEP_LEVELS, Part, SleepMode
from engine.errors import InvalidRequest
from engine.server.generation.service import GenerationService
from engine.server.http.errors import UnknownRoute
from engine.server.http.request_ids import sequence_ids_of
from engine.server.http.tenants import current_tenant
from engine.server.model.model_service import ModelService
from engine.server.protocol import body_limits
from engine.server.protocol.body_reader import check, read_json_object
from engine.server.protocol.generation_body import Strict


class AbortBody(Strict):
    size_limits = body_limits.ABORT

    request_ids: list[str] = Field(min_length=1)


async def sleep(request: Request) -> Response:
    """Give memory back until /wake_up: at level 1 the KV cache's, at level 2 the weights' too.

    `level` in the answer is how deep the engine sleeps: one that slept deeper isn't woken by this.
    """
    service = _service_in_sleep_mode(request)
    level = _one_of(request, "level", [str(level) for level in SLEEP_LEVELS], default=str(SLEEP_LEVELS[0]))
    mode = _one_of(request, "mode", [mode.value for mode in SleepMode], default=SleepMode.ABORT)
    sleeper = service.engine.sleeper
    await sleeper.sleep(int(level), SleepMode(mode))
    return JSONResponse({"status": "sleeping", "level": sleeper.state.level})


async def wake_up(request: Request) -> Response:
    """Take the memory back, or that of the parts that `tags` name: awake is who has all of them."""
    sleeper = _service_in_sleep_mode(request).engine.sleeper
    tags = request.query_params.getlist("tags") or None
    if tags is not None and (unknown := sorted(set(tags) - ALL_PARTS)):
        raise InvalidRequest(f"tags may be {', '.join(Part)}, not {', '.join(unknown)}.", param="tags")
    await sleeper.wake_up(ALL_PARTS if tags is None else {Part(tag) for tag in tags})
    return JSONResponse({"status": "sleeping" if sleeper.is_sleeping else "awake", "tags": tags})


async def is_sleeping(request: Request) -> Response:
    return JSONResponse({"is_sleeping": _service_in_sleep_mode(request).engine.sleeper.is_sleeping})


async def memory(request: Request) -> Response:
    """What the model and its KV cache hold, in bytes; on a CPU a cache takes them only as it fills."""
    return JSONResponse(asdict(_service_in_sleep_mode(request).engine.memory))


async def reset_prefix_cache(request: Request) -> Response:
    """Forget what later prompts could have shared; requests that run go on with what they have."""
    _service_in_sleep_mode(request)
    service: GenerationService = request.app.state.service
    await service.engine.reset_prefix_cache()
    return JSONResponse({"success": True})


async def abort_requests(request: Request) -> Response:
    """End requests by the ids that their answers carry. They get what there is, with reason `abort`.

    Those of other tenants go on, as if there were none of that id.
    """
    service: GenerationService = request.app.state.service
    body = check(await read_json_object(request), AbortBody)
    ids = sequence_ids_of(body.request_ids, service.engine.request_ids, current_tenant())
    for one in ids:
        service.engine.abort(one)
    return JSONResponse({"status": "aborted", "aborted": len(ids)})


def _service_in_sleep_mode(request: Request) -> ModelService:
    service: ModelService = request.app.state.service
    if not service.config.enable_sleep_mode:
        path = request.url.path
        raise UnknownRoute(f"{path} is there only if the server was started with --enable-sleep-mode.")
    return service


def _one_of(request: Request, name: str, allowed: Sequence[str], *, default: str) -> str:
    value = request.query_params.get(name, default)
    if value not in allowed:
        raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}, not {value!r}.", param=name)
    return value
