"""Routes that act on the engine itself: sleep, wake up, forget the prefix cache, abort requests.

Whoever reaches them can stop everybody's work, so all but the abort exist only where the server was started
with --enable-sleep-mode (or VLLM_SERVER_DEV_MODE=1, without which vLLM doesn't have them either).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.async_engine import SleepMode
from engine.errors import InvalidRequest
from engine.server.body import check, read_json_object
from engine.server.errors import UnknownRoute
from engine.server.generation_body import Strict
from engine.server.request_ids import sequence_ids_of
from engine.server.service import Service

SLEEP_LEVELS = ("1", "2")
_TAGS = frozenset({"weights", "kv_cache"})


class AbortBody(Strict):
    request_ids: list[str] = Field(min_length=1, max_length=4096)


async def sleep(request: Request) -> Response:
    """Give memory back until /wake_up: at level 1 the KV cache's, at level 2 the weights' too."""
    service = _service_in_sleep_mode(request)
    level = _one_of(request, "level", SLEEP_LEVELS, default="1")
    mode = _one_of(request, "mode", [mode.value for mode in SleepMode], default=SleepMode.ABORT)
    await service.engine.sleep(int(level), SleepMode(mode))
    return JSONResponse({"status": "sleeping", "level": int(level)})


async def wake_up(request: Request) -> Response:
    """Take the memory back; weights that were given back are read from the checkpoint again."""
    service = _service_in_sleep_mode(request)
    tags = request.query_params.getlist("tags") or None
    if tags is not None and set(tags) != _TAGS:
        raise InvalidRequest(
            f"tags {', '.join(tags)}: this engine wakes up as a whole; leave tags out, or give weights and "
            "kv_cache both.",
            param="tags",
        )
    await service.engine.wake_up()
    return JSONResponse({"status": "awake", "tags": tags})


async def is_sleeping(request: Request) -> Response:
    return JSONResponse({"is_sleeping": _service_in_sleep_mode(request).engine.is_sleeping})


async def reset_prefix_cache(request: Request) -> Response:
    """Forget what later prompts could have shared; requests that run go on with what they have."""
    await _service_in_sleep_mode(request).engine.reset_prefix_cache()
    return JSONResponse({"success": True})


async def abort_requests(request: Request) -> Response:
    """End requests by the ids that their answers carry. They get what there is, with reason `abort`."""
    service: Service = request.app.state.service
    body = check(await read_json_object(request), AbortBody, {})
    ids = sequence_ids_of(body.request_ids, service.engine.request_ids)
    for one in ids:
        service.engine.abort(one)
    return JSONResponse({"status": "aborted", "aborted": len(ids)})


def _service_in_sleep_mode(request: Request) -> Service:
    service: Service = request.app.state.service
    if not service.config.enable_sleep_mode:
        path = request.url.path
        raise UnknownRoute(f"{path} is there only if the server was started with --enable-sleep-mode.")
    return service


def _one_of(request: Request, name: str, allowed: Sequence[str], *, default: str) -> str:
    value = request.query_params.get(name, default)
    if value not in allowed:
        raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}, not {value!r}.", param=name)
    return value
