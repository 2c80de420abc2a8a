"""llama-swap's routes on a real Berth: what runs, unload, a model's routes by its name, logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.api.test_gateway import ask, berth_with, client_of
from tests.berth_process import BerthProcess
from tests.fake_engine import command

pytestmark = pytest.mark.timeout(120)

ADMIN, USER, LIMITED = "key-of-an-admin", "key-of-a-user", "key-for-plain"
KEYS = f"ops: {ADMIN} admin\nuser: {USER}\nlimited: {LIMITED} models=plain\n"
CATALOG: dict[str, Any] = {
    "plain": {"command": command(), "aliases": ["nick"], "timeout": 300},
    "owner/name": {"command": command()},
    "owner": {"command": command()},
    "secret": {"command": command(), "unlisted": True},
    "broken": {"command": command("--fail-with", "no")},
}


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("swap")
    (folder / "keys").write_text(KEYS)
    (folder / "keys").chmod(0o600)
    with berth_with(folder, CATALOG, API_KEYS_FILE=str(folder / "keys")) as berth:
        yield berth


def client_for(berth: BerthProcess, key: str = ADMIN) -> httpx.Client:
    client = client_of(berth)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_for(berth) as client:
        yield client
        client.get("/unload").raise_for_status()


def names(client: httpx.Client) -> list[str]:
    return [one["model"] for one in client.get("/running").json()["running"]]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/unload"), ("POST", "/unload"), ("POST", "/api/models/unload")]
)
def test_what_runs_is_listed_until_all_is_unloaded(client: httpx.Client, method: str, path: str) -> None:
    assert client.get("/running").json() == {"running": []}
    for name in ("plain", "owner/name"):
        assert ask(client, name).status_code == 200
    shown = {one["model"]: one for one in client.get("/running").json()["running"]}
    assert shown.keys() == {"plain", "owner/name"}
    plain = shown["plain"]
    assert (plain["state"], plain["ttl"]) == ("ready", 300)
    assert plain["proxy"].startswith("http://127.0.0.1:") and "--port" in plain["cmd"]
    answer = client.request(method, path)
    assert answer.text in ("OK", '{"msg":"ok"}')
    assert client.get("/running").json() == {"running": []}


def test_one_model_is_unloaded_by_name_or_alias(client: httpx.Client) -> None:
    for name in ("plain", "owner/name"):
        ask(client, name)
    assert client.post("/api/models/unload/owner/name").text == "OK"
    assert names(client) == ["plain"]
    assert client.post("/api/models/unload/nick").text == "OK"
    assert client.post("/api/models/unload/plain").status_code == 200, "nothing to do"
    assert client.post("/api/models/unload/none").status_code == 404
    assert names(client) == []


def test_a_models_routes_by_its_name(client: httpx.Client) -> None:
    """A stopped one is started; path, query and body go through unchanged; the longest name counts."""
    asked = {"temperature": 0.5}
    for path in ("plain", "nick", "owner/name", "owner%2Fname", "owner"):
        answer = client.post(f"/upstream/{path}/some/path?a=%20b", json=asked)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["target"], json.loads(answer.json()["body"])) == ("/some/path?a=%20b", asked)
    assert names(client) == ["owner", "owner/name", "plain"]
    assert client.get("/upstream/plain/v1/models").json()["data"][0]["id"] == "plain"
    assert client.get("/upstream/plain").status_code == 200
    for path in ("none/v1/models", "", "/plain"):
        assert client.get(f"/upstream/{path}").status_code == 404, path
    failed = client.get("/upstream/broken/health")
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "instance_failed")
    assert client.post("/upstream/plain/sleep").status_code == 400, "Berth would not notice"


def test_a_get_by_name_starts_the_model(client: httpx.Client) -> None:
    """As scripts for llama-swap preload one."""
    assert client.get("/upstream/plain/health").status_code == 200
    assert names(client) == ["plain"]


def test_keys_may_use_the_routes_of_requests_and_their_models(berth: BerthProcess) -> None:
    with client_for(berth, USER) as client:
        body = {"model": "plain", "prompt": "a", "max_tokens": 1}
        assert client.post("/upstream/plain/v1/completions", json=body).status_code == 200
        (shown,) = client.get("/running").json()["running"]
        assert (shown["cmd"], shown["proxy"]) == ("", ""), "for admins only"
        for path in ("/upstream/plain/env", "/upstream/plain/v1/../env", "/upstream/plain/metrics"):
            refused = client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required"), path
    with client_for(berth, LIMITED) as client:
        assert client.get("/upstream/plain/v1/models").status_code == 200
        for name in ("owner/name", "owner"):
            refused = client.get(f"/upstream/{name}/v1/models")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    with httpx.Client(base_url=berth.url, trust_env=False) as client:
        for path in ("/upstream/plain/v1/models", "/running", "/unload", "/logs"):
            assert client.get(path).status_code == 401, path


def test_an_unlisted_model_that_runs_is_shown_to_admins_alone(
    berth: BerthProcess, client: httpx.Client
) -> None:
    assert ask(client, "secret").status_code == 200
    assert "secret" in names(client)
    with client_for(berth, USER) as user:
        assert "secret" not in names(user)


def test_without_keys_no_link_stops_or_starts_a_model(tmp_path: Path) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    with berth_with(tmp_path, CATALOG) as berth, client_of(berth) as client:
        for path in ("/unload", "/upstream/plain/v1/models"):
            refused = client.get(path, headers=link)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "other_origin"), path
        assert client.get("/unload").text == "OK"


def test_logs_of_all_engines_and_of_one(client: httpx.Client) -> None:
    ask(client, "plain")
    assert "] listening on" in client.get("/logs").text
    with client.stream("GET", "/logs/stream") as response:
        assert response.headers["content-type"].startswith("text/plain")
        lines = response.iter_lines()
        assert "[plain-" in next(lines), "the last lines come first"
        ask(client, "owner/name")
        assert any("[name-" in line or "owner" in line for line in lines), "one that starts meanwhile"
    with client.stream("GET", "/logs/stream/nick", params={"tail": 5}) as response:
        assert "[plain-" in next(response.iter_lines())
    with client.stream("GET", "/logs/stream/upstream") as response:
        assert "listening on" in next(response.iter_lines())
    with client.stream("GET", "/logs/stream/owner", params={"no-history": ""}) as response:
        ask(client, "owner")
        assert "[owner-" in next(response.iter_lines())
    assert client.get("/logs/stream/proxy").status_code == 400
    assert client.get("/logs/stream/none").status_code == 404


def test_a_websocket_by_name_is_forwarded_or_refused(berth: BerthProcess) -> None:
    """The fake engine speaks no WebSocket: it is its answer that arrives."""
    url = berth.url.replace("http", "ws")
    for path, says in (("/upstream/plain/v1/realtime", "HTTP"), ("/upstream/none/v1/realtime", "404")):
        headers = {"Authorization": f"Bearer {ADMIN}"}
        with pytest.raises(Exception, match=says), connect(f"{url}{path}", additional_headers=headers):
            pass
