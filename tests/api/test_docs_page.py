"""`/docs`: all routes on one page, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from api.control.app import ROUTERS
from api.control.docs_page import describe, render
from api.gateway.engine_paths import UNVERSIONED
from api.protocols.registry import load_protocols
from tests.berth_process import running_berth

PLUGIN = "docs.examples.alpaca:AlpacaProtocol"
# Elements that make a browser load something or follow a link.
REFERRING = {"src", "href", "srcset", "action", "formaction", "data", "poster", "background", "ping", "cite"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.codes: list[str] = []
        self.rest = text
        self._is_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._is_code = tag == "code"
        for name, value in attrs:
            if name in REFERRING:
                self.references.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name.startswith("on") or name == "style":
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        self._is_code = False

    def handle_data(self, data: str) -> None:
        if self._is_code:
            self.codes.append(data)


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Response, dict[str, Any]]]:
    settings = {"PROTOCOL_PLUGINS": PLUGIN}
    with running_berth(tmp_path_factory.mktemp("docs"), **settings) as berth, berth.client() as client:
        yield client.get("/docs"), client.get("/openapi.json").json()


def test_every_route_is_on_the_page(answer: tuple[httpx.Response, dict[str, Any]]) -> None:
    """The control plane's routes, and those that the dispatcher forwards to engines."""
    response, document = answer
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    shown = re.findall(r"<summary><b>(\w+)</b><code>([^<]+)</code>", response.text)
    own = {
        (method, str(route.path).replace("{name:path}", "{name}"))
        for router in ROUTERS
        for route in router.routes
        for method in route.methods
    }
    by_name = {("POST", path.decode()) for path in UNVERSIONED}
    translated = {("POST", adapter.route) for adapter in load_protocols((PLUGIN,))}
    any_path = {
        (method, path)
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        for path in ("/v1/{path}", "/proxy/{instance_id}/{path}")
    }
    openai = {
        ("POST", f"/v1/{path}") for path in ("chat/completions", "completions", "responses", "messages")
    }
    own.remove(("GET", "/v1/models/"))  # the same page as without the slash
    assert own | by_name | translated | any_path | openai <= set(shown)
    assert ("POST", "/generate") in shown
    described = {(method.upper(), path) for path, of_path in document["paths"].items() for method in of_path}
    assert set(shown) == described
    ids = [one["operationId"] for of_path in document["paths"].values() for one in of_path.values()]
    assert len(set(ids)) == len(ids)


def test_the_page_loads_nothing(answer: tuple[httpx.Response, dict[str, Any]]) -> None:
    page = Page(answer[0].text)
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed", "base", "form", "img"})
    assert page.handlers == []
    anchors = {one.removeprefix("#") for one in page.references if one.startswith("#")}
    assert set(page.references) - {f"#{one}" for one in anchors} == {"openapi.json", "data:,"}
    assert anchors <= set(page.ids)
    assert "url(" not in page.rest and "@import" not in page.rest
    assert "http://" not in page.rest and "https://" not in page.rest
    policy = answer[0].headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy and "unsafe" not in policy


def test_its_policy_allows_its_own_style(answer: tuple[httpx.Response, dict[str, Any]]) -> None:
    response = answer[0]
    [style] = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in response.headers["content-security-policy"]


def test_fastapis_own_pages_are_disabled(tmp_path: Any) -> None:
    with running_berth(tmp_path) as berth, berth.client() as client:
        assert client.get("/redoc").status_code == 404


def test_text_of_the_document_is_escaped() -> None:
    evil = "<script>alert(1)</script>`<b>`"
    operation = {
        "summary": evil,
        "description": evil,
        "parameters": [{"name": evil, "in": evil, "schema": {"enum": [evil]}, "description": evil}],
        "responses": {},
    }
    document = {
        "info": {"title": evil, "version": evil, "description": evil},
        "paths": {"/" + evil: {"get": operation}},
        "components": {"schemas": {evil: {"properties": {evil: {"default": evil}}, "description": evil}}},
    }
    assert "<script" not in render(document)
    assert "<code><b>" not in render(document)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "anything"),
        ({"type": "integer", "minimum": 1, "maximum": 5}, "integer ≥ 1, ≤ 5"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/X"}}, "array of X"),
        ({"enum": ["a", "b"]}, '"a" | "b"'),
    ],
)
def test_types_are_described_briefly(schema: dict[str, Any], words: str) -> None:
    assert describe(schema) == words
