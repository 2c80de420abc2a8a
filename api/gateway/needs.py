"""The kind of engine that a path requires: one that generates, one that pools, or any."""

from __future__ import annotations

from functools import lru_cache

from instance_manager.backends.runner_kind import RunnerKind

_POOLING = (
    b"/v1/embeddings",
    b"/v2/embed",
    b"/pooling",
    b"/v1/pooling",
    b"/score",
    b"/v1/score",
    b"/rerank",
    b"/v1/rerank",
    b"/v2/rerank",
    b"/classify",
    b"/v1/classify",
)
_GENERATING = (b"/v1/completions", b"/v1/chat/completions", b"/v1/responses", b"/v1/messages")


@lru_cache(maxsize=1024)
def need_of(path: bytes) -> RunnerKind | None:
    """`path`: the engine's, without a query. None = any engine."""
    path = path.rstrip(b"/")
    if path in _POOLING:
        return RunnerKind.POOLING
    if any(path == route or path.startswith(route + b"/") for route in _GENERATING):
        return RunnerKind.GENERATE
    return None
