"""Routes that control the engine: sleep, wake up, memory report, prefix-cache reset, aborting requests.

A caller can disrupt all requests with them, so all but the abort exist only if the server was started with
--enable-sleep-mode (or VLLM_SERVER_DEV_MODE=1, which vLLM requires as well).
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
from engine.server.protocol.request_body import Strict


class AbortBody(Strict):
    size_limits = body_limits.ABORT

    request_ids: list[str] = Field(min_length=1)


async def sleep(request: Request) -> Response:
    """Free memory until /wake_up: the KV cache at level 1, the weights as well at level 2.

    `level` in the response is the engine's actual sleep level: an engine that sleeps deeper stays there.
    """
    service = _service_in_sleep_mode(request)
    level = _one_of(request, "level", [str(level) for level in SLEEP_LEVELS], default=str(SLEEP_LEVELS[0]))
    mode = _one_of(request, "mode", [mode.value for mode in SleepMode], default=SleepMode.ABORT)
    sleeper = service.engine.sleep_controller
    await sleeper.sleep(int(level), SleepMode(mode))
    return JSONResponse({"status": "sleeping", "level": sleeper.state.level})


async def wake_up(request: Request) -> Response:
    """Reallocate the memory, or that of the parts in `tags`. With all parts, the engine is awake."""
    sleeper = _service_in_sleep_mode(request).engine.sleep_controller
    tags = request.query_params.getlist("tags") or None
    if tags is not None and (unknown := sorted(set(tags) - ALL_PARTS)):
        raise InvalidRequest(f"tags may be {', '.join(Part)}, not {', '.join(unknown)}.", param="tags")
    await sleeper.wake_up(ALL_PARTS if tags is None else {Part(tag) for tag in tags})
    return JSONResponse({"status": "sleeping" if sleeper.is_sleeping else "awake", "tags": tags})


async def is_sleeping(request: Request) -> Response:
    return JSONResponse({"is_sleeping": _service_in_sleep_mode(request).engine.sleep_controller.is_sleeping})


async def memory(request: Request) -> Response:
    """Bytes held by the weights and the KV cache. On a CPU, cache memory is allocated only as it fills."""
    return JSONResponse(asdict(_service_in_sleep_mode(request).engine.memory))


async def reset_prefix_cache(request: Request) -> Response:
    """Drop the cached prefixes; running requests keep the blocks they use."""
    _service_in_sleep_mode(request)
    service: GenerationService = request.app.state.service
    await service.engine.reset_prefix_cache()
    return JSONResponse({"success": True})


async def abort_requests(request: Request) -> Response:
    """Abort requests by the ids in their responses. Each ends with what it has, with finish reason `abort`.

    Requests of other tenants are not affected, as if no such id existed.
    """
    service: GenerationService = request.app.state.service
    body = check(await read_json_object(request), AbortBody)
    ids = sequence_ids_of(body.request_ids, service.engine.request_ids, current_tenant())
    for sequence_id in ids:
        service.engine.abort(sequence_id)
    return JSONResponse({"status": "aborted", "aborted": len(ids)})


def _service_in_sleep_mode(request: Request) -> ModelService:
    service: ModelService = request.app.state.service
    if not service.config.enable_sleep_mode:
        path = request.url.path
        raise UnknownRoute(f"{path} is available only if the server is started with --enable-sleep-mode.")
    return service


def _one_of(request: Request, name: str, allowed: Sequence[str], *, default: str) -> str:
    value = request.query_params.get(name, default)
    if value not in allowed:
        raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}, not {value!r}.", param=name)
    return value
