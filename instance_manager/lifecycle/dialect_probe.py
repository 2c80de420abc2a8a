"""Whether an engine has an API, asked once per process: an empty request to a path that it lacks is a 404."""

from __future__ import annotations

import json

import httpx

from instance_manager.lifecycle.bounded_fetch import EngineResponse, engine_client, fetch
from instance_manager.types import Endpoint

_TIMEOUT_S = 5.0
_MAX_BYTES = 1 << 20
_ABSENT = frozenset({404, 405, 501})
_EMPTY = {"max_tokens": 1}  # every API misses a prompt, and says so


async def speaks(endpoint: Endpoint, path: str) -> bool:
    """Whether the engine serves POST requests at `path`. True if it could not be asked."""
    known = endpoint.speaks.get(path)
    if known is not None:
        return known
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    try:
        async with engine_client(_TIMEOUT_S) as client:
            response = await fetch(
                client,
                "POST",
                f"http://{host}:{endpoint.port}{path}",
                headers=headers,
                timeout_s=_TIMEOUT_S,
                max_bytes=_MAX_BYTES,
                body=_EMPTY,
            )
    except httpx.HTTPError:
        return True  # the request itself will tell what is wrong
    is_there = response.status not in _ABSENT or _misses_model(response)
    endpoint.speaks[path] = is_there
    return is_there


def _misses_model(response: EngineResponse) -> bool:
    """Whether a 404 is about the model that an empty request does not name."""
    try:
        error = json.loads(response.body)["error"]
        return bool(error.get("param") == "model" or error.get("code") == "model_not_found")
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
