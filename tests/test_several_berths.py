"""Several nodes on one Redis: any of them forwards a request to the node that owns or runs its target."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.berth_process import ROOT, BerthProcess
from tests.fake_engine import FAKE_ENGINE, command
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess
from tests.successive_berths import end, eventually, kill

pytestmark = [
    pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed"),
    pytest.mark.timeout(180),
]

ADMIN = {"Authorization": "Bearer admin-key"}
USER = {"Authorization": "Bearer user-key"}

# Models that are started only by a test.
CATALOG = f"""\
models:
  common:
    engine: command
    model: common
    aliases: [ordinary]
    command: [{sys.executable}, -S, {FAKE_ENGINE}, --host, "{{host}}", --port, "{{port}}", --model, common]
  spare:
    engine: command
    model: spare
    command: [{sys.executable}, -S, {FAKE_ENGINE}, --host, "{{host}}", --port, "{{port}}", --model, spare]
"""

SOCKETS = """\
import json, sys
from websockets.sync.server import serve

def http(connection, request):
    if request.path == "/health":
        return connection.respond(200, "")
    if request.path == "/v1/models":
        return connection.respond(200, json.dumps({"data": [{"id": "sockets"}]}))

def talk(socket):
    socket.send(json.dumps([socket.request.path, dict(socket.request.headers.raw_items())]))
    for message in socket:
        socket.send(message)

serve(talk, sys.argv[1], int(sys.argv[2]), process_request=http).serve_forever()
"""

# Berth, with a shorter owner lease.
SHORT_LEASE = f"""
import sys

sys.path.insert(0, {str(ROOT)!r})

from app import main
from instance_manager.state import session

session._LEASE_S = 1.5
sys.exit(main([]))
"""


@dataclass
class Harbour:
    """Two nodes, and what is needed for more."""

    folder: Path
    redis: RedisProcess
    one: BerthProcess
    two: BerthProcess

    def begin(self, name: str, **settings: str) -> BerthProcess:
        """Another node in its own folder, started but not awaited."""
        return _begin(self.folder / name, self.redis, **settings)


def _begin(folder: Path, redis: RedisProcess, **settings: str) -> BerthProcess:
    folder.mkdir(exist_ok=True)
    (folder / "models.yaml").write_text(CATALOG)
    usual = {
        "STATE_URL": redis.url,
        "API_KEYS": "user-key",
        "ADMIN_API_KEYS": "admin-key",
        "REQUEST_PATHS": "/v1/**,/headers,/x,/a/**,/predict",  # routes of the stand-in engines
        "MODELS_FILE": str(folder / "models.yaml"),
        "VLLM_MAX_INSTANCES": "20",
    }
    root = folder if (folder / "app.py").exists() else ROOT
    return BerthProcess(folder, root=root, **{**usual, **settings})


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    folder = tmp_path_factory.mktemp("berths")
    redis = RedisProcess(folder)
    redis.start()
    (folder / "keys").write_text("limited: limited-key models=nothing\n")
    (folder / "keys").chmod(0o600)
    berths: list[BerthProcess] = []
    try:
        keys = {"API_KEYS": "user-key,known-to-one", "API_KEYS_FILE": str(folder / "keys")}
        berths.append(_begin(folder / "one", redis, **keys))
        berths.append(_begin(folder / "two", redis))
        for berth in berths:
            berth.wait_until_serving()
        yield Harbour(folder, redis, *berths)
        for berth in berths:
            end(berth)
            assert berth.survivors() == []
    finally:
        for berth in berths:
            berth.close()
        redis.kill()


_numbers = itertools.count()


def create(berth: BerthProcess, via: BerthProcess, *flags: str, argv: list[str] | None = None) -> str:
    """A running instance and model with a new name at `berth`, which `via` knows about."""
    name = "sockets" if argv else f"model-{next(_numbers)}"
    body = {"name": name, "model_name": name, "engine": "command", "command": argv or command(*flags)}
    with berth.client() as client, via.client() as other:
        answer = client.post("/instances", params={"wait": 30}, json=body, headers=ADMIN)
        assert answer.status_code == 201 and answer.json()["status"] == "running", answer.text
        eventually(lambda: status_there(other, name) == "running", lambda: name)
    return name


def status_there(client: httpx.Client, name: str) -> str | None:
    """What a node knows about an instance, its own or a peer's."""
    found = client.get(f"/instances/{name}", headers=ADMIN).json()
    return found.get("status") if found.get("owner_is_alive", True) else None


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_a_key_is_forwarded_in_the_header_it_arrived_in(harbour: Harbour, header: str) -> None:
    name = create(harbour.two, harbour.one)
    with harbour.one.client() as client:
        answer = client.get(f"/proxy/{name}/headers", headers={header: "user-key"})
        wrong = client.get(f"/proxy/{name}/headers", headers={header: "user-kez"})
    assert answer.status_code == 200
    assert "user-key" not in answer.text
    assert wrong.status_code == 401


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_request_by_instance_id_arrives_unchanged(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)
    with harbour.one.client() as client:
        body = b"x" * 3_000_000
        answer = client.post(f"/proxy/{name}/a%2Fb//c?q=%3D&q", content=body, headers=USER)
        assert answer.status_code == 200
        assert answer.json()["target"] == "/a%2Fb//c?q=%3D&q"
        assert answer.json()["bytes"] == len(body)
        headers = {**USER, "X-Own": "1", "X-Request-Id": "mine", "X-Forwarded-For": "203.0.113.9"}
        answer = client.get(f"/proxy/{name}/headers", headers=headers)
    assert answer.headers.get_list("x-request-id") == ["mine"]
    seen = answer.json()
    assert seen["x-own"] == "1" and seen["x-request-id"] == "mine"
    assert seen["x-forwarded-for"] == "203.0.113.9, 127.0.0.1, 127.0.0.1"
    assert seen["x-forwarded-host"] == f"127.0.0.1:{harbour.one.port}"
    assert "user-key" not in str(seen)
    assert "x-berth-via" not in seen


def test_a_request_by_model_name_arrives_at_the_models_node(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)
    with harbour.one.client() as client:
        body = {"model": name, "prompt": "x", "max_tokens": 3}
        answer = client.post("/v1/completions", json=body, headers=USER)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == " token0 token1 token2"
        assert client.get("/v1/headers", params={"model": name}, headers=USER).status_code == 200
        form = {"data": {"model": name}, "files": {"file": b"x" * 100_000}}
        answer = client.post("/v1/audio/transcriptions", headers=USER, **form)  # type: ignore[arg-type]
        assert answer.json()["target"] == "/v1/audio/transcriptions"
        assert error_of(client.post("/v1/completions", json={"model": "no such"}, headers=USER)) == (
            404,
            "model_not_found",
        )


def test_the_list_of_models_includes_those_of_peers(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)
    with harbour.one.client() as client:
        listed = client.get("/v1/models", headers=USER).json()["data"]
        (entry,) = [one for one in listed if one["id"] == name]
        assert (entry["status"], entry["state"]) == ({"value": "loaded"}, "running")
        assert client.get(f"/v1/models/{name}", headers=USER).json() == entry
        limited = {"Authorization": "Bearer limited-key"}
        assert client.get("/v1/models", headers=limited).json()["data"] == []
        assert client.get(f"/v1/models/{name}", headers=limited).status_code == 404


def test_streams_flow_and_end_when_the_client_leaves(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one, "--chunk-delay", "0.1")
    body = {"model": name, "prompt": "x", "max_tokens": 6, "stream": True}
    with harbour.one.client() as client, harbour.two.client() as owner:
        for path in ("/v1/completions", f"/proxy/{name}/v1/completions"):
            with client.stream("POST", path, json=body, headers=USER) as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                arrived = [(time.monotonic(), line) for line in stream.iter_lines() if line]
            assert len(arrived) == 7 and arrived[-1][1] == "data: [DONE]"
            assert arrived[-1][0] - arrived[0][0] > 0.4  # each chunk as it arrived
        with client.stream("POST", path, json={**body, "max_tokens": 600}, headers=USER) as stream:
            next(stream.iter_lines())
        eventually(lambda: in_flight(owner, name) == 0, lambda: "a stream without a client")


def in_flight(client: httpx.Client, name: str) -> int:
    number: int = client.get(f"/instances/{name}", headers=ADMIN).json()["in_flight"]
    return number


def test_websockets_are_forwarded(harbour: Harbour) -> None:
    script = harbour.folder / "sockets.py"
    script.write_text(SOCKETS)
    argv = [sys.executable, str(script), "{host}", "{port}"]
    name = create(harbour.two, harbour.one, argv=argv)
    address = f"ws://127.0.0.1:{harbour.one.port}/proxy/{name}/v1/realtime?a=%3D"
    with connect(address, additional_headers=USER, proxy=None) as socket:
        path, headers = json.loads(socket.recv())
        assert path == "/v1/realtime?a=%3D"
        assert "x-berth-via" not in {each.lower() for each in headers}
        assert headers["x-forwarded-for"] == "127.0.0.1"  # or the peer would take the client for a local one
        socket.send("hello")
        assert socket.recv() == "hello"


def test_a_running_remote_model_is_preferred_to_a_local_start(harbour: Harbour) -> None:
    def port_asked(client: httpx.Client, model: str) -> str:
        answer = client.get("/v1/headers", params={"model": model}, headers=USER)
        assert answer.status_code == 200, answer.text
        host: str = answer.json()["host"]
        return host

    with harbour.one.client() as one, harbour.two.client() as two:
        there = start(two, "common")
        eventually(lambda: status_there(one, there) == "running", lambda: there)
        at_two = port_asked(two, "common")
        assert port_asked(one, "common") == port_asked(one, "ordinary") == at_two
        body = {"model": "ordinary", "prompt": "x"}  # the alias is resolved before forwarding
        assert one.post("/v1/completions", json=body, headers=USER).json()["model"] == "common"
        assert one.get("/models/common", headers=ADMIN).json()["replicas"] == []
        start(one, "common")
        assert port_asked(one, "common") != at_two
        assert port_asked(two, "common") == at_two


@contextmanager
def catalog(harbour: Harbour, name: str, models: dict[str, Any]) -> Iterator[None]:
    """One node's models.yaml, for the duration of the block."""
    path = harbour.folder / name / "models.yaml"
    berth = harbour.one if name == "one" else harbour.two
    with berth.client() as client:
        try:
            path.write_text(json.dumps({"models": models}))
            client.post("/reload", headers=ADMIN).raise_for_status()
            yield
        finally:
            path.write_text(CATALOG)
            client.post("/reload", headers=ADMIN).raise_for_status()


def wait_until_running_there(client: httpx.Client, instance_id: str) -> None:
    eventually(lambda: status_there(client, instance_id) == "running", lambda: instance_id)


def test_an_alias_is_known_on_every_node(harbour: Harbour) -> None:
    """In the catalog of either node: the one that is asked, or the one where the model runs."""
    ones = {"both": {"command": command(), "aliases": ["of-one"]}}
    twos = {
        "both": {"command": command(), "aliases": ["of-two"]},
        "single": {"command": command(), "aliases": ["nick"]},
        "unseen": {"command": command(), "unlisted": True},
    }
    with (
        catalog(harbour, "one", ones),
        catalog(harbour, "two", twos),
        harbour.one.client() as one,
        harbour.two.client() as two,
    ):
        for model in ("both", "single", "unseen"):
            wait_until_running_there(one, start(two, model))
        listed = {entry["id"]: entry for entry in one.get("/v1/models", headers=USER).json()["data"]}
        parents = {"of-one": "both", "of-two": "both", "nick": "single", "single": None}
        assert {name: listed[name]["parent"] for name in parents} == parents
        for name, parent in parents.items():
            assert one.get(f"/v1/models/{name}", headers=USER).json() == listed[name]
            body = {"model": name, "keep_alive": "1h"}
            answer = one.post("/v1/echo", json=body, headers=USER)
            assert json.loads(answer.json()["body"]) == {"model": parent or name}
        assert one.post("/v1/echo", json={"model": "unseen"}, headers=USER).status_code == 200
        about = one.post("/api/show", json={"model": "nick:latest"}, headers=USER)
        assert (about.status_code, about.json()["capabilities"]) == (200, ["completion"]), (
            "it is in /api/tags"
        )
        for path in ("/v1/models", "/api/tags"):
            shown = one.get(path, headers=ADMIN).text
            assert ("single" in shown, "unseen" in shown) == (True, False), path
        (record,) = (
            x for x in two.get("/instances", headers=ADMIN).json()["data"] if x["profile"] == "single"
        )
        assert record["timeout"] == 3600, "keep_alive goes with the request to where the model is"
        assert one.get("/models/both", headers=ADMIN).json()["replicas"] == []
        for model in ("both", "single", "unseen"):
            two.post(f"/models/{model}/stop", headers=ADMIN).raise_for_status()
        eventually(
            lambda: "nick" not in str(one.get("/v1/models", headers=USER).json()), lambda: "still listed"
        )


def start(client: httpx.Client, model: str) -> str:
    answer = client.post(f"/models/{model}/start", params={"wait": 30}, headers=ADMIN)
    assert answer.json()["state"] == "running", answer.text
    instance_id: str = answer.json()["replicas"][0]
    return instance_id


def test_a_forwarded_request_is_not_forwarded_again(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)
    via = {**USER, "x-berth-via": "another"}
    with harbour.one.client() as client, harbour.two.client() as owner:
        assert error_of(client.get(f"/proxy/{name}/x", headers=via)) == (404, "instance_not_found")
        assert error_of(client.post("/v1/completions", json={"model": name}, headers=via)) == (
            404,
            "model_not_found",
        )
        assert owner.get(f"/proxy/{name}/x", headers=via).status_code == 200  # and removes nothing


def test_both_nodes_check_the_key(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)

    def ask(key: str, path: str = "x") -> tuple[int, str]:
        return error_of(client.get(f"/proxy/{name}/{path}", headers={"Authorization": f"Bearer {key}"}))

    with harbour.one.client() as client:
        assert ask("nobody's") == (401, "invalid_api_key")
        assert ask("limited-key") == (403, "model_not_allowed")
        assert ask("user-key", "sleep") == (403, "admin_key_required")
        assert ask("known-to-one") == (401, "invalid_api_key")  # the peer's response
        body = {"model": name, "prompt": "x"}
        limited = {"Authorization": "Bearer limited-key"}
        assert error_of(client.post("/v1/completions", json=body, headers=limited))[0] == 403


def test_tokens_are_counted_once(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)
    body = {"model": name, "prompt": "x", "max_tokens": 5}

    def used() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.get("/usage", params={"model": name}, headers=ADMIN).json()[
            "data"
        ]
        return found

    with harbour.one.client() as client:
        for _ in range(3):
            assert client.post("/v1/completions", json=body, headers=USER).status_code == 200
        eventually(lambda: bool(used()), used)
        assert [(one["requests"], one["completion_tokens"]) for one in used()] == [(3, 15)]
        page = client.get("/metrics", params={"engines": "false"}, headers=ADMIN).text
        assert 'berth_requests_total{code="200",instance="berth:' in page
        assert f'model="{name}"' not in page
        counted = [line for line in page.splitlines() if 'completion_tokens_total{instance="berth:' in line]
        assert [line.rpartition(" ")[2] for line in counted] == ["0.0"]


def test_the_owners_response_is_passed_on(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)
    with harbour.one.client() as client, harbour.two.client() as owner:
        owner.post(f"/instances/{name}/stop", headers=ADMIN)
        eventually(lambda: status_there(client, name) == "stopped", lambda: name)
        assert error_of(client.get(f"/proxy/{name}/x", headers=USER)) == (409, "instance_not_running")
        owner.delete(f"/instances/{name}", headers=ADMIN)

        def gone() -> httpx.Response:
            return client.get(f"/proxy/{name}/x", headers=USER)

        eventually(lambda: error_of(gone()) == (404, "instance_not_found"), lambda: gone().text)


def test_nodes_keep_serving_without_redis(harbour: Harbour) -> None:
    name = create(harbour.two, harbour.one)
    with harbour.one.client() as client:

        def is_away() -> bool:
            return bool(client.get("/info", headers=ADMIN).json()["state"]["trouble"])

        harbour.redis.freeze()
        try:
            eventually(is_away, lambda: "Redis is not missed")
            assert client.get(f"/proxy/{name}/x", headers=USER).status_code == 200
            body = {"model": name, "prompt": "x"}
            assert client.post("/v1/completions", json=body, headers=USER).status_code == 200
        finally:
            harbour.redis.thaw()
        eventually(lambda: not is_away(), lambda: "Redis is still missed")
        assert client.get(f"/proxy/{name}/x", headers=USER).status_code == 200


def test_an_unreachable_owner_is_named_and_comes_back(harbour: Harbour) -> None:
    folder = harbour.folder / "three"
    folder.mkdir()
    (folder / "app.py").write_text(SHORT_LEASE)
    three = harbour.begin("three")
    again: BerthProcess | None = None
    try:
        three.wait_until_serving()
        name = create(three, harbour.one)
        with harbour.one.client() as client:

            def ask() -> httpx.Response:
                return client.get(f"/proxy/{name}/x", headers=USER)

            assert ask().status_code == 200
            spare = {"model": "spare", "prompt": "x"}
            with three.client() as owner:
                wait_until_running_there(client, start(owner, "spare"))
            assert client.post("/v1/completions", json=spare, headers=USER).status_code == 200
            assert client.get("/models/spare", headers=ADMIN).json()["replicas"] == []
            kill(three)
            assert ask().status_code in (502, 503)  # at once, whether or not the outage is known yet
            # From then on, startable models start here.
            assert client.post("/v1/completions", json=spare, headers=USER).status_code == 200
            assert len(client.get("/models/spare", headers=ADMIN).json()["replicas"]) == 1
            eventually(lambda: error_of(ask()) == (503, "owner_away"), lambda: ask().text)
            assert int(ask().headers["retry-after"]) > 0
            assert "which is down" in ask().json()["error"]["message"]
            by_name = client.post("/v1/completions", json={"model": name}, headers=USER)
            assert error_of(by_name) == (503, "owner_away")

            again = harbour.begin("three", VLLM_BASE_PORT=str(three.base_port))  # at another address
            again.wait_until_serving()
            eventually(lambda: ask().status_code == 200, lambda: ask().text)
            by_name = client.post("/v1/completions", json={"model": name}, headers=USER)
            assert by_name.status_code == 200
            end(again)
            eventually(lambda: error_of(ask()) == (503, "owner_away"), lambda: ask().text)
    finally:
        for berth in (three, again):
            if berth is not None:
                berth.close()
