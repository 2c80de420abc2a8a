"""The app of a server that generates: its route table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.errors import EngineError, GenerationFailed
from engine.server.app import adapter_routes, control_routes
from engine.server.app.common_routes import COMMON_ROUTES
from engine.server.app.middleware import RequestMiddleware
from engine.server.app.unsupported_routes import UNSUPPORTED_ROUTES, unsupported_route
from engine.server.app.wrong_runner_routes import POOLING_PATHS, needs_pooling
from engine.server.generation.service import GenerationService
from engine.server.http.errors import MethodNotAllowed, UnknownRoute, error_response
from engine.server.messages.routes import count_tokens, create_message
from engine.server.model.model_service import ModelService
from engine.server.openai.chat import create_chat_completion
from engine.server.openai.chat_batch import create_chat_batch
from engine.server.openai.completions import create_completion
from engine.server.openai.responses.routes import (
    cancel_response,
    count_input_tokens,
    create_response,
    delete_response,
    get_response,
    list_input_items,
)

log = logging.getLogger(__name__)

_ROUTES = (
    ("POST", "/v1/completions", create_completion),
    ("POST", "/v1/chat/completions", create_chat_completion),
    ("POST", "/v1/chat/completions/batch", create_chat_batch),
    ("POST", "/v1/responses", create_response),
    ("POST", "/v1/responses/input_tokens", count_input_tokens),
    ("GET", "/v1/responses/{name}", get_response),
    ("GET", "/v1/responses/{name}/input_items", list_input_items),
    ("DELETE", "/v1/responses/{name}", delete_response),
    ("POST", "/v1/responses/{name}/cancel", cancel_response),
    ("POST", "/v1/messages", create_message),
    ("POST", "/v1/messages/count_tokens", count_tokens),
    *COMMON_ROUTES,
    ("POST", "/reset_prefix_cache", control_routes.reset_prefix_cache),
    ("POST", "/v1/load_lora_adapter", adapter_routes.load_adapter),
    ("POST", "/v1/unload_lora_adapter", adapter_routes.unload_adapter),
    *(("POST", path, needs_pooling) for path in POOLING_PATHS),
    *((method, path, unsupported_route) for method, path in UNSUPPORTED_ROUTES),
)


def create_app(service: GenerationService) -> RequestMiddleware:
    return build_app(_ROUTES, service)


def build_app(
    routes: Iterable[tuple[str, str, Callable[..., Any]]], service: ModelService
) -> RequestMiddleware:
    """An app with these routes: (method, path, endpoint)."""
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for method, path, endpoint in routes],
        exception_handlers={
            EngineError: _on_engine_error,
            HTTPException: _on_http_exception,
            Exception: _on_exception,
        },
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return RequestMiddleware(app, service)


async def _on_engine_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, EngineError):  # for the type checker: Starlette selects handlers by class
        raise error
    return error_response(error, request.url.path)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Raised by Starlette: unknown route, or wrong method."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        response = error_response(
            MethodNotAllowed(f"Method {request.method} is not allowed for {request.url.path}."),
            request.url.path,
        )
        response.headers.update(error.headers or {})
        return response
    return error_response(UnknownRoute(f"No such route: {request.url.path}."), request.url.path)


async def _on_exception(request: Request, error: Exception) -> Response:
    """Last resort. Starlette re-raises the error, so it is logged with its traceback."""
    failure = GenerationFailed(f"Internal server error: {type(error).__name__}.")
    return error_response(failure, request.url.path)
