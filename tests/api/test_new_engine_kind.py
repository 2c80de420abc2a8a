"""A new engine kind is one file (tests/scratch_kind.py) and one line; the rest is a real Berth over HTTP."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from instance_manager.backends import BACKENDS
from tests.berth_process import ROOT, running_berth
from tests.fake_engine import FAKE_ENGINE

DEMO = str(ROOT / "models" / "berth-demo")
USER = {"Authorization": "Bearer user-key"}
ADMIN = {"Authorization": "Bearer admin-key"}
MODELS = {
    "small": {"engine": "scratch", "path": DEMO},
    "huge": {"engine": "scratch", "path": DEMO, "params": {"cache_gib": 1_000_000}},
}
APP = f"""\
import sys
sys.path[0] = {str(ROOT)!r}
from instance_manager.backends import BACKENDS
from tests.scratch_kind import ScratchBackend
BACKENDS["scratch"] = ScratchBackend()
import app
sys.exit(app.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "models.yaml"
    path.write_text(json.dumps({"models": MODELS}))
    return path


@pytest.fixture(scope="module")
def client(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An admin's client of a Berth whose default engine is the new kind."""
    folder = tmp_path_factory.mktemp("berth")
    (folder / "app.py").write_text(APP)
    settings = {
        "PYTHONPATH": str(ROOT),
        "API_KEYS": "user-key",
        "ADMIN_API_KEYS": "admin-key",
        "DEFAULT_ENGINE": "scratch",
        "UNKNOWN_FIELDS": "refuse",
        "MODELS_FILE": str(catalog),
        "HEALTH_INTERVAL": "0.1",
        "STALL_TIMEOUT": "0.3",
        "RESTART_POLICY": "never",
    }
    with running_berth(folder, root=folder, **settings) as berth, berth.client() as client:
        client.headers.update(ADMIN)
        yield client


@pytest.fixture
def one(client: httpx.Client) -> Iterator[str]:
    """The address of a running instance of the kind, under /proxy/."""
    body = {"model_name": DEMO, "name": "one", "params": {"chunk_delay": 0.5}}
    created = client.post("/instances", params={"wait": 60}, json=body)
    assert created.status_code == 201, created.text
    yield "/proxy/one"
    client.delete("/instances/one", params={"force": True})


def record(client: httpx.Client, name: str = "one") -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/instances/{name}").json()
    return found


def eventually(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_is_started_with_its_own_flags_settings_and_key(client: httpx.Client, one: str) -> None:
    found = record(client)
    assert (found["engine"], found["status"], found["params"]) == ("scratch", "running", {"chunk_delay": 0.5})
    command = found["command"]
    assert FAKE_ENGINE in command and command[command.index("--chunk-delay") + 1] == "0.5"
    environment = client.get(f"{one}/env").json()
    assert environment["SCRATCH_FIELDS"] == "refuse"
    assert environment["SCRATCH_KEY"] and "VLLM_API_KEY" not in environment


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"params": {"dtype": "auto"}}, "params.dtype", "scratch has no such flag"),
        ({"command": ["serve", "{port}"]}, "command", "engine 'scratch' builds its own"),
        ({"env": {"SCRATCH_KEY": "mine"}}, "env.SCRATCH_KEY", "Berth sets it"),
        ({"engine": "skratch"}, "engine", f"known engines: {', '.join(BACKENDS)}, scratch"),
    ],
)
def test_what_it_cannot_run_is_refused(
    client: httpx.Client, body: dict[str, Any], param: str, says: str
) -> None:
    error = client.post("/instances", json={"model_name": DEMO, **body}).json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_its_control_route_needs_an_admin_key(client: httpx.Client, one: str) -> None:
    for path, status in {"/scratch/ask": 200, "/scratch/drain": 403, "//scratch/%64rain/": 403}.items():
        assert client.post(one + path, headers=USER).status_code == status, path
    assert client.post(f"{one}/scratch/drain").status_code == 200


def test_a_line_of_its_log_explains_its_failure(client: httpx.Client) -> None:
    body = {"model_name": DEMO, "name": "no", "params": {"fail_with": "scratch can't: it is Tuesday."}}
    error = client.post("/instances", params={"wait": 60}, json=body).json()["error"]
    assert error["code"] == "unsupported_model"
    assert error["message"].endswith("can't be run: it is Tuesday.")


def test_its_own_counters_show_whether_it_is_stuck(client: httpx.Client, tmp_path: Path) -> None:
    page = tmp_path / "metrics"
    of_others = "vllm:num_requests_running 1\nvllm:prompt_tokens_total 1\n"
    page.write_text(f"scratch:jobs 0\nscratch:ticks 5\n{of_others}")
    body = {"model_name": DEMO, "name": "stuck", "params": {"metrics_page": str(page)}}
    client.post("/instances", params={"wait": 60}, json=body)
    assert "scratch:ticks 5" in client.get("/metrics/instances/stuck").text
    time.sleep(1)  # without jobs it isn't stuck, and counters of other kinds don't count
    assert record(client, "stuck")["status"] == "running"
    page.write_text("scratch:jobs 1\nscratch:ticks 5\n")
    eventually(lambda: record(client, "stuck")["status"] == "failed")
    error = record(client, "stuck")["error"]
    assert error["class"] == "unhealthy" and "has taken no step" in error["message"]


def test_it_sleeps_and_wakes_by_its_own_routes(client: httpx.Client, one: str) -> None:
    for put_to_sleep in ("/instances/one/sleep", f"{one}/scratch/nap?level=2"):
        assert client.post(put_to_sleep).status_code == 200
        assert record(client)["status"] == "sleeping"
        assert client.get(f"{one}/scratch/awake").status_code == 200
        assert record(client)["status"] == "sleeping"
        assert client.post("/instances/one/wake").json()["status"] == "running"


def test_its_estimate_is_planned_with(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    assert client.post("/v1/completions", json={"model": "small", **body}).status_code == 200
    refused = client.post("/v1/completions", json={"model": "huge", **body})
    assert refused.status_code == 503
    assert "1000000" in refused.json()["error"]["message"], refused.text


def test_it_is_listed_where_kinds_are(client: httpx.Client, catalog: Path) -> None:
    assert client.get("/info").json()["default_engine"] == "scratch"
    assert "`scratch` (in a test)" in client.get("/openapi.json").text
    catalog.write_text(json.dumps({"models": {**MODELS, "wrong": {"engine": "skratch"}}}))
    message = client.post("/reload").json()["error"]["message"]
    known = ", ".join(repr(name) for name in ("auto", *BACKENDS))
    assert f"must be {known} or 'scratch'; did you mean scratch?" in message


def test_no_kind_needs_an_admin_key_for_another_s_requests() -> None:
    kinds = BACKENDS.values()
    requests = {path for kind in kinds for path in f"{kind.routes.requests} {kind.routes.reads}".split()}
    control = {path for kind in kinds for path in kind.routes.control.split()}
    assert not requests & control


def test_only_back_ends_ask_which_kind_an_engine_is() -> None:
    """What differs between kinds is a back end's fact; elsewhere nothing compares a kind's name."""
    found = []
    for folder in ("api", "cli", "composition", "configs", "instance_manager"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "backends" not in path.parts:
                words = compared_words(ast.parse(path.read_text()))
                found += [f"{path}:{word.lineno}" for word in words if word.value in BACKENDS]
    assert not found


def compared_words(tree: ast.AST) -> Iterator[ast.Constant]:
    """The constants in comparisons, alone or in a tuple, and in Literal types."""
    for node in ast.walk(tree):
        operands: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            operands = [node.slice]
        for one in operands:
            inside = one.elts if isinstance(one, ast.Tuple | ast.List | ast.Set) else [one]
            yield from (word for word in inside if isinstance(word, ast.Constant))
