"""The app of a pooling server: its route table."""

from __future__ import annotations

from engine.server.app import control_routes, utility_routes
from engine.server.app.generation_app import build_app
from engine.server.app.middleware import RequestMiddleware
from engine.server.app.openapi import docs_page, openapi_document
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
    ("GET", "/v1/models", utility_routes.list_models),
    ("GET", "/v1/models/{name:path}", utility_routes.get_model),
    ("GET", "/health", utility_routes.health),
    ("GET", "/ping", utility_routes.ping),
    ("POST", "/ping", utility_routes.ping),
    ("GET", "/version", utility_routes.version),
    ("GET", "/load", utility_routes.load),
    ("GET", "/metrics", utility_routes.metrics),
    ("POST", "/tokenize", utility_routes.tokenize),
    ("POST", "/detokenize", utility_routes.detokenize),
    ("POST", "/inference/v1/abort_requests", control_routes.abort_requests),
    ("POST", "/abort_requests", control_routes.abort_requests),
    ("POST", "/sleep", control_routes.sleep),
    ("POST", "/wake_up", control_routes.wake_up),
    ("GET", "/is_sleeping", control_routes.is_sleeping),
    ("GET", "/memory", control_routes.memory),
    ("GET", "/openapi.json", openapi_document),
    ("GET", "/docs", docs_page),
    *((method, path, unsupported_route) for method, path in UNSUPPORTED_ROUTES),
    *(("POST", path, needs_generation) for path in GENERATION_PATHS),
)


def create_pooling_app(service: PoolingService) -> RequestMiddleware:
    return build_app(_ROUTES, service)
