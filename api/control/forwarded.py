"""The routes that are forwarded to engines, for Berth's OpenAPI document.

Their bodies depend on the engine: see `/proxy/{instance_id}/openapi.json` of the embedded one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from api.gateway.engine_paths import UNVERSIONED

_ANY = ("get", "post", "put", "patch", "delete")
_POST = ("post",)
BY_NAME, BY_INSTANCE, TRANSLATED = "models by name", "engines by instance", "other protocols"

# Path: methods, summary. All other paths below /v1/ are forwarded as well.
_VERSIONED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "/v1/chat/completions": (_POST, "Create a chat completion"),
    "/v1/completions": (_POST, "Create a completion"),
    "/v1/responses": (_POST, "Create a response (OpenAI's Responses API)"),
    "/v1/messages": (_POST, "Create a message (Anthropic's Messages API)"),
    "/v1/messages/count_tokens": (_POST, "Count a message's prompt tokens"),
    "/v1/embeddings": (_POST, "Create embeddings"),
    "/v1/{path}": (_ANY, "Any other route of the model's engine"),
}
_NAMED_IN_BODY = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}}
_ANSWER = {"200": {"description": "The engine's response; if streamed, server-sent events"}}


def with_forwarded(document: dict[str, Any], translated: Iterable[str] = ()) -> dict[str, Any]:
    """An OpenAPI document with the forwarded routes added. `translated`: those of protocol adapters."""
    paths: dict[str, Any] = dict(document["paths"])
    for path, (methods, summary) in _VERSIONED.items():
        more = "Routed to the `model` in the body or in `?model=`, which is started or woken if necessary."
        _add(paths, path, methods, BY_NAME, summary, more)
    for path in (route.decode() for route in UNVERSIONED):
        target = UNVERSIONED[path.encode()].decode()
        summary = f"Same as {target}" if target != path else f"vLLM's {path}"
        _add(paths, path, _POST, BY_NAME, summary, "Routed to the `model` in the body.")
    for path in sorted(translated):
        _add(
            paths,
            path,
            _POST,
            TRANSLATED,
            "See docs/plugins.md",
            "Translated to OpenAI's API.",
        )
    more = "Any method, path and body, and WebSockets: forwarded to the instance's engine unchanged."
    _add(paths, "/proxy/{instance_id}/{path}", _ANY, BY_INSTANCE, "Any route of the instance's engine", more)
    more = "As by instance; a model that doesn't run is started. A model's name may have slashes."
    _add(paths, "/upstream/{model}/{path}", _ANY, BY_INSTANCE, "Any route of the model's engine", more)
    return {**document, "paths": paths}


def _add(
    paths: dict[str, Any], path: str, methods: Iterable[str], tag: str, summary: str, description: str
) -> None:
    operation_name = "_".join(part.strip("{}") for part in path.split("/") if part)
    operation: dict[str, Any] = {
        "tags": [tag],
        "summary": summary,
        "description": description,
        "responses": _ANSWER,
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    body = {"content": {"application/json": {"schema": _NAMED_IN_BODY}}}
    of_path = paths.setdefault(path, {})
    for method in methods:
        own = {**operation, "operationId": f"forward_{method}_{operation_name}"}
        if method == "post" and tag == BY_NAME:
            own["requestBody"] = body
        of_path.setdefault(method, own)
