"""The engine's description of itself: complete, valid, and nothing that it invites to breaks the server."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from starlette.routing import Route

from engine.config import ServerConfig
from engine.server.absent import ABSENT
from engine.server.app import create_app
from engine.server.openapi import build_document, describe_type
from engine.server.operations import OPERATIONS
from engine.server.pooling.elsewhere import POOLING_PATHS
from engine.server.service import Service
from tests.engine.server.serving import Running

# More of them: `make fuzz`.
NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
SERVERS_OWN_ERRORS = range(500, 600)


def routes() -> set[tuple[str, str]]:
    """What the app has, in the document's way of writing parameters."""
    from engine.async_engine import AsyncEngine

    def no_core() -> Any:
        raise AssertionError("nobody starts this engine")

    gate = create_app(Service(AsyncEngine(no_core), ServerConfig(served_model_names=("m",)), max_num_seqs=1))
    found = set()
    for route in gate.app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            found.add((method, route.path.replace(":path}", "}")))
    return found


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    elsewhere = {("POST", path) for path in POOLING_PATHS}
    assert routes() == set(OPERATIONS) | set(ABSENT) | elsewhere


def test_a_route_that_takes_a_body_says_which() -> None:
    without = {path for (method, path), one in OPERATIONS.items() if method == "POST" and not one.bodies}
    assert without <= {
        "/ping",
        "/sleep",
        "/wake_up",
        "/reset_prefix_cache",
        "/v1/responses/{response_id}/cancel",
    }


def test_references_lead_somewhere() -> None:
    document = build_document()

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
def test_types_in_words(schema: dict[str, Any], words: str) -> None:
    assert describe_type(schema) == words


def test_the_page_shows_every_route(fake_server: Running) -> None:
    with fake_server.http() as client:
        page = client.get("/docs")
        paths = client.get("/openapi.json").json()["paths"]
    assert page.headers["content-type"].startswith("text/html")
    for path in paths:
        assert f"<code>{path}</code>" in page.text
    assert "http" not in page.text.replace("application/http", ""), "the page loads something"


def asked() -> list[tuple[str, GenerationMode]]:
    """Operations, with what fits their description; and with what doesn't, where a body can be wrong."""
    found = []
    for methods in build_document()["paths"].values():
        for one in methods.values():
            found.append((one["operationId"], GenerationMode.POSITIVE))
            if "requestBody" in one:
                found.append((one["operationId"], GenerationMode.NEGATIVE))
    return found


@pytest.mark.timeout(600 if NUM_EXAMPLES <= 100 else 36000)
@pytest.mark.parametrize(("operation_id", "mode"), asked(), ids=lambda one: getattr(one, "value", one))
def test_nothing_that_may_be_asked_breaks_the_server(
    fake_server: Running, operation_id: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(build_document())
    schema.config.update(base_url=fake_server.url)
    operation = schema.find_operation_by_id(operation_id)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=NUM_EXAMPLES <= 100,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        response = case.call()
        assert response.status_code not in SERVERS_OWN_ERRORS, response.text

    ask()
    fake_server.wait_idle()
