"""The app of a pooling server: its route table."""

from __future__ import annotations

from engine.server.app.common_routes import COMMON_ROUTES
from engine.server.app.generation_app import build_app
from engine.server.app.middleware import RequestMiddleware
from engine.server.app.unsupported_routes import UNSUPPORTED_ROUTES, unsupported_route
from engine.server.app.wrong_runner_routes import GENERATION_PATHS, needs_generation
from engine.server.pooling.scores import create_rerank, create_score
from engine.server.pooling.service import PoolingService
from engine.server.pooling.vectors import create_cohere_embedding, create_embedding, create_pooling

_ROUTES = (
    ("POST", "/v1/embeddings", create_embedding),
    ("POST", "/v2/embed", create_cohere_embedding),
    ("POST", "/pooling", create_pooling),
    ("POST", "/score", create_score),
    ("POST", "/v1/score", create_score),
    ("POST", "/rerank", create_rerank),
    ("POST", "/v1/rerank", create_rerank),
    ("POST", "/v2/rerank", create_rerank),
    *COMMON_ROUTES,
    *((method, path, unsupported_route) for method, path in UNSUPPORTED_ROUTES),
    *(("POST", path, needs_generation) for path in GENERATION_PATHS),
)


def create_pooling_app(service: PoolingService) -> RequestMiddleware:
    return build_app(_ROUTES, service)
