"""The routes that go on to engines, as Berth's description of itself lists them beside its own.

What their bodies hold is each engine's to say: `/proxy/{instance_id}/openapi.json` of the embedded one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from api.gateway.gateway import UNVERSIONED

_ANY = ("get", "post", "put", "patch", "delete")
_POST = ("post",)
BY_NAME, BY_INSTANCE, TRANSLATED = "models by name", "engines by instance", "other protocols"

# Path: methods, what it does. Whatever else is below /v1/ goes the same way.
_VERSIONED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "/v1/chat/completions": (_POST, "Answer a conversation"),
    "/v1/completions": (_POST, "Continue a prompt"),
    "/v1/responses": (_POST, "Answer in the form of OpenAI's Responses"),
    "/v1/messages": (_POST, "Answer in the form of Anthropic's Messages"),
    "/v1/messages/count_tokens": (_POST, "How many tokens that would read"),
    "/v1/embeddings": (_POST, "Embed texts"),
    "/v1/{path}": (_ANY, "Whatever else the model's engine knows"),
}
_NAMED_IN_BODY = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}}
_ANSWER = {"200": {"description": "The engine's answer; where it streams, server-sent events"}}


def with_forwarded(document: dict[str, Any], translated: Iterable[str] = ()) -> dict[str, Any]:
    """An OpenAPI document with the forwarded routes added. `translated`: those of protocol adapters."""
    paths: dict[str, Any] = dict(document["paths"])
    for path, (methods, summary) in _VERSIONED.items():
        more = "To a model by the `model` in the body, or by `?model=`: started, woken or waited for."
        _add(paths, path, methods, BY_NAME, summary, more)
    for path in (one.decode() for one in UNVERSIONED):
        target = UNVERSIONED[path.encode()].decode()
        summary = f"As {target}" if target != path else f"{path[1:]}, as vLLM has it"
        _add(paths, path, _POST, BY_NAME, summary, "To a model by the `model` in the body.")
    for path in sorted(translated):
        _add(
            paths,
            path,
            _POST,
            TRANSLATED,
            "See docs/plugins.md",
            "RoutedRequest of a model in OpenAI's words.",
        )
    more = "Any method, path and body, and WebSockets: passed on to the instance's engine as they come."
    _add(paths, "/proxy/{instance_id}/{path}", _ANY, BY_INSTANCE, "Whatever the engine knows", more)
    return {**document, "paths": paths}


def _add(
    paths: dict[str, Any], path: str, methods: Iterable[str], tag: str, summary: str, description: str
) -> None:
    name = "_".join(part.strip("{}") for part in path.split("/") if part)
    operation: dict[str, Any] = {
        "tags": [tag],
        "summary": summary,
        "description": description,
        "responses": _ANSWER,
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in names
        ]
    body = {"content": {"application/json": {"schema": _NAMED_IN_BODY}}}
    of_path = paths.setdefault(path, {})
    for method in methods:
        own = {**operation, "operationId": f"forward_{method}_{name}"}
        if method == "post" and tag == BY_NAME:
            own["requestBody"] = body
        of_path.setdefault(method, own)
