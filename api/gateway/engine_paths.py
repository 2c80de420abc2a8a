"""The paths of requests that name a model, and the engine's paths for them."""

from __future__ import annotations

from collections.abc import Mapping

from api.gateway.needs import need_of
from api.http.asgi import Scope
from api.http.dispatch import raw_path
from instance_manager.backends.runner_kind import RunnerKind

VERSIONED = b"/v1/"
# Paths without a version, and the engine's paths for them.
UNVERSIONED: Mapping[bytes, bytes] = {
    b"/chat/completions": b"/v1/chat/completions",
    b"/completions": b"/v1/completions",
    b"/embeddings": b"/v1/embeddings",
    b"/responses": b"/v1/responses",
    b"/rerank": b"/rerank",
    b"/v2/rerank": b"/v2/rerank",
    b"/v2/embed": b"/v2/embed",
    b"/score": b"/score",
    b"/pooling": b"/pooling",
    b"/classify": b"/classify",
    b"/tokenize": b"/tokenize",
    b"/detokenize": b"/detokenize",
    b"/api/v0/chat/completions": b"/v1/chat/completions",  # LM Studio's
    b"/api/v0/completions": b"/v1/completions",
    b"/api/v0/embeddings": b"/v1/embeddings",
}


def engine_path(scope: Scope) -> bytes:
    """The engine's path and query for this request."""
    path = raw_path(scope)
    path = UNVERSIONED.get(path, path)
    return path + b"?" + scope["query_string"] if scope["query_string"] else path


def plain_path(scope: Scope) -> str:
    """The engine's path, without a query."""
    path = raw_path(scope)
    return UNVERSIONED.get(path, path).decode("latin-1")


def need_for(scope: Scope) -> RunnerKind | None:
    path = raw_path(scope)
    return need_of(UNVERSIONED.get(path, path))
