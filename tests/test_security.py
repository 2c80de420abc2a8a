"""SECURITY.md is correct: a Berth with keys, and clients with none, a request key or an admin key."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.access.ollama_routes import FOR_REQUESTS
from api.control.read_paths import READ_PATHS
from api.http.dialects import speaks_ollama
from tests.berth_process import ROOT, BerthProcess, running_berth
from tests.fake_engine import command

USER, ADMIN = "user-key-5d1c", "admin-key-90ab"
# Each is given to Berth in a different way; none may be revealed.
TOKEN, VARIABLE, FLAG, PARAMETER = "hf_secret_1", "env_secret_2", "flag_secret_3", "param_secret_4"
SECRETS = (USER, ADMIN, TOKEN, VARIABLE, FLAG, PARAMETER)
NUM_IDLE = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a folder of models, a model beside it, and a link to that."""
    folder = tmp_path_factory.mktemp("security")
    for name in ("models", "outside"):
        (folder / name).mkdir()
    (folder / "models" / "inside").symlink_to(ROOT / "models" / "berth-demo")
    (folder / "outside" / "model").symlink_to(ROOT / "models" / "berth-demo")
    return folder


@pytest.fixture(scope="module")
def berth(folder: Path) -> Iterator[BerthProcess]:
    """With an instance `a` that was given secrets."""
    settings = {
        "API_KEYS": USER,
        "ADMIN_API_KEYS": ADMIN,
        "HF_TOKEN": TOKEN,
        "MODEL_DIRS": str(folder / "models"),
        "MAX_CONNECTIONS": str(2 * NUM_IDLE),
        "STATE_DIR": str(folder / "state"),
    }
    with running_berth(folder, **settings) as berth, client(berth, ADMIN) as admin:
        admin.post("/instances?wait=60", json=spec("a")).raise_for_status()
        yield berth


def spec(name: str, *flags: str) -> dict[str, Any]:
    secret = ["--api-key", FLAG, f"--hf-token={FLAG}"]  # which the shell throws away
    argv = ["/bin/sh", "-c", 'shift 3; exec "$@"', "sh", *secret, *command(*flags)]
    return {
        "name": name,
        "model_name": name,
        "engine": "command",
        "command": argv,
        "env": {"MY_TOKEN": VARIABLE},
    }


def client(berth: BerthProcess, key: str = "") -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=berth.url, headers=headers, trust_env=False, timeout=60)


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def routes() -> list[tuple[str, str]]:
    """Every control route, with its parameters filled in."""
    from api.control.app import ROUTERS

    found = []
    for router in ROUTERS:
        for route in router.routes:
            path = str(route.path).replace("{instance_id}", "a").replace("{name:path}", "a")
            found += [(method, path) for method in route.methods]
    return sorted(found)


OPEN = {"/", "/health", "/health/liveness", "/health/readiness"}


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_requires_an_admin_unless_listed(berth: BerthProcess, method: str, path: str) -> None:
    """A route that is added tomorrow is tried here too."""
    if path in OPEN:
        return
    with client(berth) as nobody, client(berth, USER) as user:
        assert nobody.request(method, path).status_code == 401
        if path.startswith("/v1/models") or path == "/usage":  # each key gets its own list
            assert user.request(method, path).status_code == 200
        elif method == "GET" and path.encode() in READ_PATHS | {b"/api/v0/models/a"}:
            with user.stream(method, path) as response:  # of the models that the key may use
                assert response.status_code in (200, 400, 404)
        elif path.encode() in FOR_REQUESTS:
            assert user.request(method, path).status_code in (200, 400, 404)
        elif speaks_ollama(path.encode()):  # an error is a text there
            answer = user.request(method, path)
            assert answer.status_code == 403 and "ADMIN_API_KEYS" in answer.json()["error"]
        else:
            assert code_of(user.request(method, path)) == (403, "admin_key_required")


def test_a_request_key_cannot_use_a_path_as_a_model(berth: BerthProcess, folder: Path) -> None:
    """Not even the path of an existing model."""
    outside = folder / "outside" / "model"
    paths = [
        str(outside),
        "../outside/model",
        "inside/../../outside/model",
        "./inside",
        str(folder / "models" / "inside"),
        "~",
        "/etc",
        "/etc/passwd\0",
        "..",
        ".",
        "",
        "file://" + str(outside),
        "Qwen/Qwen3-0.6B",
    ]
    with client(berth, USER) as user, client(berth, ADMIN) as admin:
        before = admin.get("/instances?all=true").json()
        for path in paths:
            for route in ("/v1/completions", "/tokenize", "/generate"):
                response = user.post(route, json={"model": path, "prompt": "x"})
                if route == "/generate" and path == "":
                    continue  # uses the default model
                assert code_of(response) == (404, "model_not_found"), (route, path)
            if path:
                asked = user.post("/v1/completions", params={"model": path}, json={})
                assert code_of(asked) == (404, "model_not_found"), path
        after = admin.get("/instances?all=true").json()
    assert [one["instance_id"] for one in after["data"]] == [one["instance_id"] for one in before["data"]]


def test_no_model_name_leads_out_of_the_model_folders(berth: BerthProcess) -> None:
    with client(berth, ADMIN) as admin:
        for name in ("inside/../../outside/model", "../outside/model", "~nobody/x"):
            response = admin.post("/instances", json={"model_name": name})
            assert code_of(response) == (404, "model_not_found"), name


def test_secrets_are_in_no_response_and_no_log(berth: BerthProcess) -> None:
    with client(berth, ADMIN) as admin:
        failing = admin.post("/instances?wait=60", json=spec("b", "--fail-with", "no luck"))
        params = {"model_name": "inside", "name": "c", "params": {"hf_token": PARAMETER, "no_such_flag": 1}}
        pages = [
            failing.text,
            admin.post("/instances?wait=60", json=params).text,
            admin.post("/instances", json={"env": {"HF_TOKEN": [VARIABLE]}}).text,
            admin.post("/instances", json={"model_name": "x", "env": {"VLLM_API_KEY": VARIABLE}}).text,
            admin.post("/instances", json={"model_name": "x", "command": f"x --api-key {FLAG}"}).text,
            admin.post("/instances", json={"model_name": "x", "api_key": FLAG}).text,
            admin.post("/instances", content=f'{{"env": {{"TOKEN": "{VARIABLE}"').text,
        ]
        routes = ("/instances?all=true", "/instances/a", "/instances/b", "/models", "/models/a", "/info")
        for path in (*routes, "/metrics", "/version", "/openapi.json", "/v1/models"):
            pages.append(admin.get(path).text)
        for name in ("a", "b", "c"):
            pages.append(admin.get(f"/instances/{name}/logs").text)
        with admin.stream("GET", "/events", headers={"last-event-id": "0"}) as events:
            chunks = events.iter_text()
            events_text = ""
            while "failed" not in events_text:
                events_text += next(chunks)
            pages.append(events_text)
        for name in ("b", "c"):
            admin.delete(f"/instances/{name}?force=true")
    with client(berth, "wrong-" + ADMIN) as stranger:
        pages.append(stranger.get("/instances").text)
    pages.append(berth.output())
    pages += [path.read_text(errors="replace") for path in berth_files(berth)]
    for page in pages:
        found = [secret for secret in SECRETS if secret in page]
        assert found == [], page[:2000]


def berth_files(berth: BerthProcess) -> list[Path]:
    """The logs that it has written."""
    with client(berth, ADMIN) as admin:
        log = Path(admin.get("/instances/a").json()["log_path"])
    return [path for path in log.parent.rglob("*") if path.is_file()]


def test_engines_listen_only_on_loopback_and_know_no_key_of_berth(berth: BerthProcess) -> None:
    with client(berth, ADMIN) as admin:
        record = admin.get("/instances/a").json()
    engine = psutil.Process(record["pid"])
    tree = [engine, *engine.children(recursive=True)]
    heard = [one.laddr.ip for process in tree for one in process.net_connections() if one.status == "LISTEN"]
    assert heard and set(heard) == {"127.0.0.1"}
    for process in tree:
        described = json.dumps([process.environ(), process.cmdline()])
        assert USER not in described and ADMIN not in described
        assert process.environ()["VLLM_API_KEY"] not in json.dumps(process.cmdline())
    other = httpx.get(f"http://127.0.0.1:{record['port']}/health", trust_env=False)
    assert other.status_code in (200, 401)


def test_control_routes_accept_only_short_bodies(berth: BerthProcess) -> None:
    long = b'{"model_name": "' + b"x" * 2**20 + b'"}'
    with client(berth, ADMIN) as admin:
        assert code_of(admin.post("/instances", content=long)) == (413, "body_too_large")
        chunks = iter([long[:1000], long[1000:]])
        assert code_of(admin.post("/instances", content=chunks)) == (413, "body_too_large")
        assert code_of(admin.patch("/instances/a", content=long)) == (413, "body_too_large")
        assert admin.get("/instances/a").status_code == 200


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 3 * count:
        pytest.skip(f"this system gives {limits[1]} descriptors at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * count, limits[1]))
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connections.append(socket.create_connection(("127.0.0.1", port), timeout=30))
        yield connections
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_two_thousand_idle_connections_do_not_block_requests(berth: BerthProcess) -> None:
    """Half of them silent, half in the middle of a head."""
    with idle_connections(berth.port, NUM_IDLE) as idle, client(berth, USER) as user:
        for connection in idle[::2]:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: ")
        for _ in range(20):
            response = user.post("/v1/completions", json={"model": "a", "prompt": "x"})
            assert response.status_code == 200
            assert response.elapsed.total_seconds() < 5
