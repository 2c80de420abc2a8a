"""The routes of a pooling server, put together."""

from __future__ import annotations

from engine.server import control, ops
from engine.server.absent import ABSENT, not_here
from engine.server.app import build_app
from engine.server.gate import Gate
from engine.server.openapi import docs_page, openapi_document
from engine.server.pooling.elsewhere import GENERATION_PATHS, needs_generation
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
    ("GET", "/v1/models", ops.list_models),
    ("GET", "/v1/models/{name:path}", ops.get_model),
    ("GET", "/health", ops.health),
    ("GET", "/ping", ops.ping),
    ("POST", "/ping", ops.ping),
    ("GET", "/version", ops.version),
    ("GET", "/load", ops.load),
    ("GET", "/metrics", ops.metrics),
    ("POST", "/tokenize", ops.tokenize),
    ("POST", "/detokenize", ops.detokenize),
    ("POST", "/inference/v1/abort_requests", control.abort_requests),
    ("POST", "/abort_requests", control.abort_requests),
    ("POST", "/sleep", control.sleep),
    ("POST", "/wake_up", control.wake_up),
    ("GET", "/is_sleeping", control.is_sleeping),
    ("GET", "/memory", control.memory),
    ("GET", "/openapi.json", openapi_document),
    ("GET", "/docs", docs_page),
    *((method, path, not_here) for method, path in ABSENT),
    *(("POST", path, needs_generation) for path in GENERATION_PATHS),
)


def create_pooling_app(service: PoolingService) -> Gate:
    return build_app(_ROUTES, service)
