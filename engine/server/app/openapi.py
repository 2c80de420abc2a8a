"""The engine's OpenAPI document and its HTML page, built from the route table and the body models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from html import escape
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from engine import __version__
from engine.server.app.openapi_operations import GENERATING, OPERATIONS, POOLING, MediaType, Operation
from engine.server.generation.service import GenerationService

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_INT64 = 2**63
_ENVELOPE: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The invalid field."},
                "code": {"type": "string"},
            },
        }
    },
}
_ANTHROPIC_ENVELOPE: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
# Served without an API key.
_OPEN = {"/health", "/ping", "/version"}


async def openapi_document(request: Request) -> Response:
    return JSONResponse(_document_of(request))


async def docs_page(request: Request) -> Response:
    return HTMLResponse(_render_page(_document_of(request)))


class ServerKind(Enum):
    """Each kind of server has its own routes."""

    GENERATING = "generating"
    POOLING = "pooling"
    ANY = "any"  # all routes of both kinds


_OPERATIONS = {ServerKind.GENERATING: GENERATING, ServerKind.POOLING: POOLING, ServerKind.ANY: OPERATIONS}


def _document_of(request: Request) -> dict[str, Any]:
    generates = isinstance(request.app.state.service, GenerationService)
    return build_document(ServerKind.GENERATING if generates else ServerKind.POOLING)


@cache
def build_document(kind: ServerKind) -> dict[str, Any]:
    """The OpenAPI 3.1 document. Cached and shared, so treat it as read-only."""
    operations = _OPERATIONS[kind]
    schemas = _schemas({body for operation in operations.values() for body in operation.bodies})
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in operations.items():
        paths.setdefault(path, {})[method.lower()] = _describe(method, path, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Berth's engine",
            "version": __version__,
            "description": "One model behind OpenAI's API. Errors: `{error: {message, type, param, code}}`; "
            "an unknown field is ignored and named in the `Warning` header.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _ENVELOPE, "AnthropicError": _ANTHROPIC_ENVELOPE},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _schemas(bodies: Iterable[type[Any]]) -> dict[str, Any]:
    ordered = sorted(bodies, key=lambda body: body.__name__)
    _, definitions = models_json_schema([(body, "validation") for body in ordered], ref_template=_REFERENCE)
    found: dict[str, Any] = definitions.get("$defs", {})
    return found


def _describe(method: str, path: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "summary": operation.summary,
        "responses": _responses(operation, "AnthropicError" if path.startswith("/v1/messages") else "Error"),
    }
    if path not in _OPEN:
        described["security"] = [{"bearer": []}, {"key": []}, {}]
    if operation.sleep_mode:
        described["description"] = "Only with --enable-sleep-mode."
    if operation.bodies:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _body(operation)}},
        }
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in operation.query.items()
    ]
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _path_parameters(path)
    ]
    if parameters:
        described["parameters"] = parameters
    return described


def _body(operation: Operation) -> dict[str, Any]:
    references = [{"$ref": _REFERENCE.format(model=body.__name__)} for body in operation.bodies]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _responses(operation: Operation, envelope: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.media_type is not MediaType.EMPTY:
        content[operation.media_type.value] = {
            "schema": {} if operation.media_type is MediaType.JSON else {"type": "string"}
        }
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    good: dict[str, Any] = {"description": "Success."}
    if content:
        good["content"] = content
    return {"200": good, **{str(status.value): _error(status, envelope) for status in _ERRORS}}


def _error(status: HTTPStatus, envelope: str) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(model=envelope)}
    return {"description": status.phrase, "content": {"application/json": {"schema": schema}}}


def _operation_id(method: str, path: str) -> str:
    words = (
        path.replace("{", "")
        .replace("}", "")
        .replace("-", "_")
        .strip("/")
        .replace("/", "_")
        .replace(".", "_")
    )
    return f"{method.lower()}_{words}"


def _path_parameters(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


# The page


def _render_page(document: Mapping[str, Any]) -> str:
    """Routes and bodies as tables. The page loads no external resources."""
    rows = [
        f"<tr><td><code>{method.upper()}</code><td><code>{escape(path)}</code><td>{escape(operation['summary'])}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    bodies = [_render_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    info = document["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>"
        "<style>body{font:15px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}"
        "td{padding:.1em 1em .1em 0;vertical-align:top}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}"
        '<p>OpenAPI document: <a href="openapi.json">openapi.json</a>'
        f"<h2>Routes</h2><table>{''.join(rows)}</table><h2>Bodies</h2>{''.join(bodies)}</html>"
    )


def _render_schema(name: str, schema: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(field)}</code><td><code>{escape(describe_type(type_schema))}</code>"
        for field, type_schema in schema.get("properties", {}).items()
    ]
    return f"<h3>{escape(name)}</h3><table>{''.join(rows)}</table>"


def describe_type(schema: Mapping[str, Any]) -> str:
    """A short form of a JSON schema: `integer ≥ 1`, `string | array of string | null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(dict.fromkeys(describe_type(option) for option in schema[union]))
    if "enum" in schema or "const" in schema:
        return " | ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    words = str(schema.get("type", "anything"))
    if words == "array":
        words += f" of {describe_type(schema.get('items', {}))}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in signs.items()
        if key in schema and abs(schema[key]) < _INT64  # 64-bit bounds are not worth showing
    ]
    return " ".join([words, ", ".join(limits)]).strip()
