"""The control plane: a FastAPI application with every route that is not forwarded to engines."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route

from api.control import (
    catalog,
    docs_page,
    instances,
    llama_cpp,
    llama_swap,
    lm_studio,
    metrics_page,
    models,
    ops,
    pull,
    streams,
    usage_report,
)
from api.control.body_check import BodyCheck
from api.control.body_limit import BodyLimit
from api.control.catalog import ModelFiles
from api.control.error_response import error_response
from api.control.forwarded import with_forwarded
from api.control.head_requests import HeadRequests
from api.control.metrics_page import MetricsPage
from api.control.model_events import ModelEvents
from api.control.ollama import routes as ollama_routes
from api.control.ollama.state import OllamaState
from api.control.schemas import ErrorEnvelope
from api.http.asgi import App, Message, Receive, Scope, Send
from api.http.errors import RequestRefused, api_error, error_for
from api.http.respond import request_id_of
from api.telemetry.access_log import log_answered
from instance_manager.backends.params import is_secret
from instance_manager.errors import ManagerError
from instance_manager.fleet.fleet import Fleet
from instance_manager.hub.downloads import Downloads
from instance_manager.hub.pull import Pulls
from instance_manager.manager import InstanceManager

logger = logging.getLogger("berth")

# A model's name may be any path, so fixed paths below /models come first.
_DIALECTS = (llama_cpp, llama_swap, lm_studio, ollama_routes)
_PARTS = (instances, streams, ops, metrics_page, usage_report, pull, *_DIALECTS, catalog, models)
ROUTERS = tuple(part.router for part in _PARTS)
_MAY_HOLD_SECRETS = frozenset({"command", "env"})  # fields whose values are never quoted in errors
DESCRIPTION = "Starts LLM engines, each on a port of its own, and forwards OpenAI traffic to them."


def create_control_app(
    manager: InstanceManager,
    fleet: Fleet,
    model_files: ModelFiles,
    pulls: Pulls,
    metrics_page: MetricsPage,
    *,
    version: str,
    translated: Iterable[str] = (),
    ollama: OllamaState | None = None,
) -> FastAPI:
    """FastAPI with the control routes; its lifespan runs manager and pulls, and so owns all child processes.

    `translated`: the routes of protocol adapters, for the OpenAPI document. `ollama`: None = no second port.
    """

    downloads = Downloads(pulls, model_files.refresh)
    events = ModelEvents(fleet, pulls, model_files.facts)
    model_files.add_listener(events.reloaded)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        downloading = downloads.run()
        async with pulls.run(), downloading, manager.run(), fleet.run(), events.run(), model_files.watching():
            fleet.preload()
            yield

    app = ControlApp(
        title="Berth",
        version=version,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from another host
        redoc_url=None,
        responses={"default": {"model": ErrorEnvelope, "description": "OpenAI's error envelope"}},
    )
    app.state.manager = manager
    app.state.fleet = fleet
    app.state.model_files = model_files
    app.state.facts = model_files.facts
    app.state.pulls = pulls
    app.state.downloads = downloads
    app.state.model_events = events
    app.state.metrics_page = metrics_page
    app.state.translated = tuple(translated)
    app.state.ollama = ollama or OllamaState.of(fleet)
    for router in ROUTERS:
        app.include_router(router)
    app.add_route("/docs", _docs, include_in_schema=False)
    app.add_middleware(HeadRequests)
    app.add_middleware(BodyCheck)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestId)
    app.add_exception_handler(ManagerError, _manager_error)
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


class ControlApp(FastAPI):
    """FastAPI whose OpenAPI document includes the forwarded routes."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = with_forwarded(super().openapi(), self.state.translated)
        return self.openapi_schema


async def _docs(request: Request) -> Response:
    return HTMLResponse(docs_page.render(request.app.openapi()), headers=docs_page.HEADERS)


class RequestId:
    """Adds `X-Request-Id`, the client's or a new one, to responses, and writes the access log."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        request_id = request_id_of(scope)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            log_answered(scope, status, started, request_id)


async def _manager_error(request: Request, exc: Exception) -> Response:
    return error_response(error_for(exc), request)


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestRefused)  # noqa: S101 - registered for this type only; narrows it
    return error_response(exc.error, request)


async def _unexpected(request: Request, exc: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return error_response(error_for(exc), request)


async def _http_error(request: Request, exc: Exception) -> Response:
    """404 for an unknown route, 405 for a wrong method."""
    assert isinstance(exc, HTTPException)  # noqa: S101 - registered for this type only; narrows it
    kind = "not_found_error" if exc.status_code == 404 else "invalid_request_error"
    message = f"{request.method} {request.url.path}: {exc.detail}; /docs lists the routes"
    response = error_response(api_error(exc.status_code, message, kind), request)
    if exc.status_code == 405:
        response.headers["Allow"] = ", ".join(sorted(_methods_of(request)))
    return response


def _methods_of(request: Request) -> set[str]:
    """All methods of a path; the exception has only those of the first matching route."""
    routes = (route for router in ROUTERS for route in router.routes if isinstance(route, Route))
    methods = {
        method
        for route in routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return methods | {"HEAD"} if "GET" in methods else methods


async def _validation_error(request: Request, exc: Exception) -> Response:
    """400 for a body that isn't JSON, 422 for an invalid field; reports the first error."""
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - narrows the type
    first = exc.errors()[0]
    where, *path = first["loc"]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", first["msg"])
        message = f"the body is not valid JSON: {detail} (at byte {path[0] if path else 0})"
        error = api_error(400, message, "invalid_request_error", code="invalid_json")
        return error_response(error, request)
    param = ".".join(str(part) for part in path) or None
    may_be_secret = not path or any(is_secret(str(part)) or part in _MAY_HOLD_SECRETS for part in path)
    shown = "" if may_be_secret else _shown(first.get("input"))
    message = f"{param or where}: {first['msg']}{shown}"
    error = api_error(422, message, "invalid_request_error", param=param, code=first["type"])
    return error_response(error, request)


def _shown(value: object) -> str:
    """The invalid value, if it is short enough to help."""
    if value is None or isinstance(value, dict | list):
        return ""
    text = repr(value)
    return f" (got {text})" if len(text) <= 100 else ""
