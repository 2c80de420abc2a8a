"""Paths of the other kind of server: a 404 that says which flag to use."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from engine.server.http.errors import UnknownRoute

POOLING_PATHS = (
    "/v1/embeddings",
    "/v2/embed",
    "/pooling",
    "/score",
    "/v1/score",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
)
GENERATION_PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
)


async def needs_pooling(request: Request) -> Response:
    """Raises UnknownRoute."""
    raise UnknownRoute(
        f"{request.url.path} needs a pooling model, but this server runs a generative one. Start the "
        "engine with --runner pooling."
    )


async def needs_generation(request: Request) -> Response:
    """Raises UnknownRoute."""
    raise UnknownRoute(
        f"{request.url.path} needs a generative model, but this engine runs with --runner pooling."
    )
