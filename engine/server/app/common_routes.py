"""The routes of every engine, whether it generates or pools."""

from __future__ import annotations

from engine.server.app import control_routes, utility_routes
from engine.server.app.openapi import docs_page, openapi_document

COMMON_ROUTES = (
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
)
