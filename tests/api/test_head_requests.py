"""HEAD for every GET route: the same head, no body, and an end even if a GET has none."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import httpx
import pytest
from starlette.routing import Route

from api.control.app import ROUTERS
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

# GET stops all models; is refused without a model; is 404 for a job that there isn't.
OTHERS = {"/unload", "/slots", "/api/v1/models/download/status/{job_id}"}
PATHS = sorted(
    {
        route.path.replace("{instance_id}", "a").replace("{name:path}", "a")
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, Route) and "GET" in (route.methods or ())
    }
    - OTHERS
)
# Two answers to GET differ in these, too.
CHANGING = {"x-request-id", "content-length"}


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    with running_berth(tmp_path_factory.mktemp("head"), API_KEYS="user-key", ADMIN_API_KEYS="k") as berth:
        with client_of(berth) as client:
            spec = {"name": "a", "model_name": "a", "engine": "command", "command": command()}
            client.post("/instances?wait=60", json=spec).raise_for_status()
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_of(berth) as client:
        yield client


def client_of(berth: BerthProcess) -> httpx.Client:
    headers = {"authorization": "Bearer k"}
    return httpx.Client(base_url=berth.url, headers=headers, trust_env=False, timeout=30)


@pytest.mark.parametrize(
    "path", [*PATHS, "/docs", "/openapi.json", "/proxy/a/x", "/v1/x?model=a", "/instances/a/logs?follow=true"]
)
def test_head_is_get_without_its_body(client: httpx.Client, path: str) -> None:
    with client.stream("GET", path) as asked:  # not read: some have no end
        got = asked.headers
    looked_at = client.head(path)
    assert looked_at.status_code == asked.status_code == 200
    assert looked_at.content == b""
    names = set(got) - {"transfer-encoding"}
    assert set(looked_at.headers) == names
    assert {n: v for n, v in looked_at.headers.items() if n not in CHANGING} == {
        name: got[name] for name in names - CHANGING
    }


@pytest.mark.parametrize(
    "path", ["/nothing", "/instances/none", "/models/none", "/proxy/none/x", "/v1/models/none"]
)
def test_head_of_an_unknown_path_is_404_without_a_body(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (404, b"")
    assert int(answer.headers["content-length"]) == len(client.get(path).content)


def test_head_without_a_key_is_permitted_only_for_health(berth: BerthProcess) -> None:
    with httpx.Client(base_url=berth.url, trust_env=False) as nobody:
        assert nobody.head("/health").status_code == 200
        assert nobody.head("/v1/models").status_code == nobody.head("/instances").status_code == 401


def test_head_of_a_post_route_is_405(client: httpx.Client) -> None:
    answer = client.head("/instances/a/stop")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "HEAD" in client.put("/instances").headers["allow"]


def test_head_stops_no_models(client: httpx.Client) -> None:
    assert client.head("/unload").status_code == 405
    assert client.get("/instances/a").json()["status"] == "running"


def test_the_connection_stays_usable_after_a_head(berth: BerthProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", berth.port, timeout=30)
    try:
        for path in ("/events", "/health", "/instances/a/logs?follow=true", "/v1/models"):
            connection.request("HEAD", path, headers={"authorization": "Bearer k"})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
            assert connection.sock is not None, "it is the same connection all along"
    finally:
        connection.close()
