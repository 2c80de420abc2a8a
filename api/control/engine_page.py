"""A page of a running llama.cpp.

It is fetched without a lease: that neither wakes an engine nor keeps it from expiring.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import httpx

from instance_manager.fleet.models import Model
from instance_manager.lifecycle.bounded_fetch import engine_client, fetch
from instance_manager.lifecycle.instance import Instance

_TIMEOUT_S = 5.0
_MAX_BYTES = 8 << 20
_KIND, _PROGRAM = "llama", "llama-server"  # the engine kind; the program in a `command`


async def engine_page(model: Model, path: str) -> Any:
    """The JSON of a GET of `path`; None unless a replica of the model runs llama.cpp and answers it."""
    instance = next((one for one in model.awake if _is_llama_cpp(one)), None)
    endpoint = None if instance is None else instance.gate.endpoint
    if endpoint is None:
        return None
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    url = f"http://{host}:{endpoint.port}{path}"
    try:
        async with engine_client(_TIMEOUT_S) as client:
            answer = await fetch(
                client, "GET", url, headers=headers, timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES
            )
        return json.loads(answer.body) if answer.is_ok else None
    except (httpx.HTTPError, ValueError):
        return None


def _is_llama_cpp(instance: Instance) -> bool:
    program = next(iter(instance.command), "")
    return instance.spec.engine == _KIND or PurePath(program).name.startswith(_PROGRAM)
