"""Health, readiness and information about Berth itself."""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

from fastapi import APIRouter, Request

from api.control.deps import Manager
from instance_manager.errors import ShuttingDown
from instance_manager.state.stores.errors import StoreUnavailable

router = APIRouter(tags=["operations"])


@router.get("/health", summary="200 while Berth is running")
@router.get("/health/liveness", summary="200 while the process responds")
async def liveness() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/health/readiness", summary="200 while new requests are accepted, 503 during shutdown")
async def readiness(manager: Manager) -> dict[str, str]:
    """Includes `"state": "behind"` while the state store can't be written (see `/info`); Berth still serves.

    Also 503 if another process has taken over this node's name.
    """
    if manager.is_shutting_down:
        raise ShuttingDown("Berth is shutting down")
    status = manager.state.keeper.status
    if status.is_deposed:
        raise StoreUnavailable("another Berth process uses this node's name; stop one of them")
    return {"status": "ok"} if status.trouble is None else {"status": "ok", "state": "behind"}


@router.get("/version", summary="Berth's version")
async def version(request: Request) -> dict[str, str]:
    return {"version": request.app.version}


@router.get("/info", summary="Version, platform, limits and the number of instances per state")
async def info(request: Request, manager: Manager) -> dict[str, Any]:
    config, status = manager.config, manager.state.keeper.status
    states = Counter(instance.state.value for instance in manager.list(include_terminal=True))
    return {
        "version": request.app.version,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "default_engine": config.default_engine,
        "default_model": config.default_model,
        "ports": {"first": config.base_port, "last": config.base_port + config.max_instances - 1},
        "max_instances": config.max_instances,
        "instances": dict(states),
        "state": {
            "store": config.state_url.partition(":")[0],
            "owner": manager.state.session.owner,
            "trouble": status.trouble,
            "unwritten_instances": status.num_unwritten,
        },
    }
