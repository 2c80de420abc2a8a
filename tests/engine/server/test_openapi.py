"""The OpenAPI document is complete and valid, and no request made from it breaks the server."""

from __future__ import annotations

from typing import Any

import pytest
from schemathesis import GenerationMode
from starlette.routing import Route

from engine.config import ServerConfig
from engine.core.async_engine import AsyncEngine
from engine.models.pooling_type import PoolingType
from engine.models.registry import ARCHITECTURES
from engine.pooling.engine import PoolingEngine
from engine.pooling.plan import PoolingPlan, Task
from engine.server.app.generation_app import create_app
from engine.server.app.middleware import RequestMiddleware
from engine.server.app.openapi import ServerKind, build_document, describe_type
from engine.server.app.openapi_operations import GENERATING, OPERATIONS, POOLING
from engine.server.app.pooling_app import create_pooling_app
from engine.server.app.unsupported_routes import UNSUPPORTED_ROUTES
from engine.server.app.wrong_runner_routes import POOLING_PATHS, needs_generation, needs_pooling
from engine.server.generation.service import GenerationService
from engine.server.pooling.service import PoolingService
from tests.engine.server.fuzzing import IS_LONG, fuzz, questions
from tests.engine.server.serving import Running


def routes_of(middleware: RequestMiddleware) -> set[tuple[str, str]]:
    """The app's own routes, with parameters written as in the document."""
    found = set()
    for route in middleware.app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, Route)
        if route.endpoint not in (needs_generation, needs_pooling):
            method = next(iter((route.methods or set()) - {"HEAD"}))
            found.add((method, route.path.replace(":path}", "}")))
    return found


PLAN = PoolingPlan(
    architecture=ARCHITECTURES["BertModel"],
    task=Task.EMBED,
    pooling=PoolingType.CLS,
    use_activation=True,
    embedding_size=8,
    max_model_len=16,
)


def nothing_to_build() -> Any:
    raise AssertionError("this engine must not be started")


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    config = ServerConfig(served_model_names=("m",))
    generating = create_app(GenerationService(AsyncEngine(nothing_to_build), config, max_num_seqs=1))
    assert routes_of(generating) == set(GENERATING) | set(UNSUPPORTED_ROUTES)
    engine = PoolingEngine(nothing_to_build, PLAN)
    pooling = create_pooling_app(PoolingService(engine, config, max_num_seqs=1))
    assert routes_of(pooling) == set(POOLING) | set(UNSUPPORTED_ROUTES)


def test_each_kind_of_server_describes_itself() -> None:
    """It lacks the routes of the other kind."""
    assert "/v1/completions" in build_document(ServerKind.GENERATING)["paths"]
    assert "/v1/completions" not in build_document(ServerKind.POOLING)["paths"]
    assert set(POOLING_PATHS) <= set(build_document(ServerKind.POOLING)["paths"])
    assert not set(POOLING_PATHS) & set(build_document(ServerKind.GENERATING)["paths"])
    assert set(build_document(ServerKind.ANY)["paths"]) == {path for _, path in OPERATIONS}


def test_a_route_that_takes_a_body_says_which() -> None:
    without = {path for (method, path), one in OPERATIONS.items() if method == "POST" and not one.bodies}
    assert without <= {
        "/ping",
        "/sleep",
        "/wake_up",
        "/reset_prefix_cache",
        "/v1/responses/{name}/cancel",
    }


def test_references_are_resolvable() -> None:
    document = build_document(ServerKind.ANY)

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            reference = value.get("$ref")
            if reference is not None:
                assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(document)
    identities = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 128}, "integer ≥ 1, ≤ 128"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"type": "array", "items": {"type": "integer", "minimum": 0}}, "array of integer ≥ 0"),
        ({"enum": ["none", "auto"]}, '"none" | "auto"'),
        ({"$ref": "#/components/schemas/Tool"}, "Tool"),
        ({}, "anything"),
    ],
)
def test_types_have_short_forms(schema: dict[str, Any], words: str) -> None:
    assert describe_type(schema) == words


def test_the_page_shows_every_route(fake_server: Running) -> None:
    with fake_server.http() as client:
        page = client.get("/docs")
        paths = client.get("/openapi.json").json()["paths"]
    assert page.headers["content-type"].startswith("text/html")
    for path in paths:
        assert f"<code>{path}</code>" in page.text
    assert "http" not in page.text.replace("application/http", ""), "the page loads something"


@pytest.mark.timeout(36000 if IS_LONG else 600)
@pytest.mark.parametrize(
    ("operation_id", "mode"), questions(ServerKind.GENERATING), ids=lambda one: getattr(one, "value", one)
)
def test_no_generated_request_causes_a_server_error(
    fake_server: Running, operation_id: str, mode: GenerationMode
) -> None:
    fuzz(fake_server, ServerKind.GENERATING, operation_id, mode)
    fake_server.wait_idle()
