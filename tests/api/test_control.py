"""The control routes of a real Berth with fake engines: responses and errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.control.forwarded import with_forwarded
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    with running_berth(tmp_path_factory.mktemp("control"), VLLM_MAX_INSTANCES="3") as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with berth.client() as client:
        yield client
        for instance in client.get("/instances", params={"all": "true"}).json()["data"]:
            client.delete(f"/instances/{instance['instance_id']}", params={"force": "true"})


def fake(name: str, *flags: str, **fields: Any) -> dict[str, Any]:
    return {"model_name": "fake", "engine": "command", "name": name, "command": command(*flags), **fields}


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


RECORD_FIELDS = {
    "instance_id", "model_name", "served_model_name", "engine", "status", "status_reason", "host", "port",
    "pid", "pid_start_time", "params", "command", "timeout", "expires_at", "last_active", "in_flight",
    "devices", "memory_bytes", "created_at", "ready_at", "load_phase", "load_progress", "load_seconds",
    "restarts", "log_path", "error", "profile", "pinned", "sleep_level", "engine_reason",
    "container",
}  # fmt: skip


def test_the_lifecycle_of_an_instance(berth: BerthProcess, client: httpx.Client) -> None:
    created = client.post("/instances", json=fake("life", timeout=120))
    assert created.status_code == 201
    assert created.headers["location"] == "/instances/life"
    assert set(created.json()) == RECORD_FIELDS
    assert created.json()["status"] == "starting"

    assert client.get("/proxy/life/v1/models").status_code == 200  # waits until it runs
    record = client.get("/instances/life").json()
    assert record["status"] == "running"
    assert record["port"] == berth.base_port
    assert record["timeout"] == 120
    assert record["load_seconds"] > 0

    patched = client.patch("/instances/life", json={"timeout": 0, "pinned": True}).json()
    assert patched["timeout"] == 0
    assert patched["expires_at"] is None

    stopped = client.post("/instances/life/stop").json()
    assert (stopped["status"], stopped["pid"]) == ("stopped", None)
    assert client.get("/instances").json() == {"object": "list", "data": []}
    assert len(client.get("/instances", params={"all": "true"}).json()["data"]) == 1

    started = client.post("/instances/life/start", params={"wait": 30}).json()
    assert started["status"] == "running"
    restarted = client.post("/instances/life/restart", params={"wait": 30}).json()
    assert restarted["status"] == "running"
    assert restarted["pid"] != started["pid"]

    assert client.delete("/instances/life").status_code == 204
    assert client.get("/instances/life").status_code == 404


def test_the_list_is_filtered(client: httpx.Client) -> None:
    client.post("/instances?wait=30", json=fake("one", model_name="m1"))
    client.post("/instances?wait=30", json=fake("two", model_name="m2"))
    client.post("/instances/two/stop")

    def names(**params: str) -> list[str]:
        return [i["instance_id"] for i in client.get("/instances", params=params).json()["data"]]

    assert names() == ["one"]
    assert names(all="true") == ["one", "two"]
    assert names(status="stopped") == ["two"]
    assert names(model="m2", all="true") == ["two"]
    assert error_of(client.get("/instances", params={"status": "asleep"}))["param"] == "status"


def test_a_waiting_client_gets_the_failed_start_as_an_error(client: httpx.Client) -> None:
    response = client.post(
        "/instances?wait=30", json=fake("bad", "--fail-with", "no such thing", "--exit-code", "3")
    )
    assert response.status_code == 503
    error = error_of(response)
    assert "no such thing" in error["message"]
    assert "3" in error["message"]
    record = client.get("/instances/bad").json()
    assert record["status"] == "failed"
    assert record["error"]["exit_code"] == 3
    assert record["error"]["class"] == "crashed"
    assert "no such thing" in record["error"]["log_tail"]


def test_wait_returns_in_time_in_any_state(client: httpx.Client) -> None:
    response = client.post("/instances?wait=0.2", json=fake("slow", "--slow-start", "30"))
    assert response.status_code == 201
    assert response.json()["status"] in ("starting", "health_checking")


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        (b"{not json", 400, None, "JSON"),
        (b"[]", 422, None, "dictionary"),
        ({"model_name": 7}, 422, "model_name", "string"),
        ({"model_name": "m", "modle": 1}, 422, "modle", "Extra"),
        ({"model_name": "m", "engine": "ollama"}, 422, "engine", "ollama"),
        ({"model_name": "m", "engine": "vllm"}, 422, "engine", "VLLM_PYTHON"),
        ({"model_name": "/no/such/model"}, 404, "model_name", "/no/such/model"),
        ({"model_name": "m", "timeout": -1}, 422, "timeout", "-1"),
        ({"model_name": "m", "timeout": "10"}, 422, "timeout", "number"),
        ({"model_name": "m", "engine": "command"}, 422, "command", "command"),
        ({"model_name": "m", "engine": "command", "command": []}, 422, "command", "list"),
        ({"model_name": "m", "command": ["x"]}, 422, "command", "command"),
        ({"model_name": "m", "name": "../x"}, 422, "name", "../x"),
        ({"model_name": "berth-demo", "params": {"port": 1}}, 422, "params.port", "port"),
        ({"model_name": "m", "env": {"A": 1}}, 422, "env.A", "string"),
    ],
)
def test_errors_name_the_field(
    client: httpx.Client, body: bytes | dict[str, Any], status: int, param: str | None, says: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/instances", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = error_of(response)
    assert error["param"] == param
    assert says in error["message"]
    assert client.get("/instances", params={"all": "true"}).json()["data"] == []


def test_the_same_name_twice_is_a_conflict(client: httpx.Client) -> None:
    client.post("/instances", json=fake("twin"))
    response = client.post("/instances", json=fake("twin"))
    assert response.status_code == 409
    assert error_of(response)["code"] == "instance_exists"


def test_more_instances_than_allowed(client: httpx.Client) -> None:
    for number in range(3):
        assert client.post("/instances", json=fake(f"n{number}")).status_code == 201
    response = client.post("/instances", json=fake("n3"))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert error_of(response)["code"] == "no_capacity"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/instances/none"),
        ("PATCH", "/instances/none"),
        ("DELETE", "/instances/none"),
        ("POST", "/instances/none/stop"),
        ("POST", "/instances/none/start"),
        ("POST", "/instances/none/restart"),
        ("GET", "/instances/none/logs"),
        ("GET", "/instances/none/logs?follow=true"),
        ("POST", "/proxy/none/v1/completions"),
    ],
)
def test_an_unknown_instance(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path, json={} if method in ("PATCH", "POST") else None)
    assert response.status_code == 404
    assert error_of(response)["code"] == "instance_not_found"
    assert "'none'" in error_of(response)["message"]


def test_an_instance_in_the_wrong_state(client: httpx.Client) -> None:
    client.post("/instances?wait=30", json=fake("run"))
    assert error_of(client.post("/instances/run/start"))["code"] == "wrong_state"
    client.post("/instances/run/stop")
    response = client.get("/proxy/run/v1/models")
    assert response.status_code == 409
    assert "start" in error_of(response)["message"]


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    assert error_of(client.get("/nothing"))["type"] == "not_found_error"
    response = client.put("/instances")
    assert response.status_code == 405
    assert {"GET", "POST"} <= set(response.headers["allow"].split(", "))
    error_of(response)


def test_logs_as_text_and_followed(client: httpx.Client) -> None:
    client.post("/instances?wait=30", json=fake("talk"))
    with client.stream("GET", "/instances/talk/logs", params={"follow": "true"}) as followed:
        assert followed.headers["content-type"].startswith("text/event-stream")
        assert any(line.startswith("data: listening on") for line in followed.iter_lines())
    text = client.get("/instances/talk/logs", params={"tail": 1})
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text.startswith("listening on")


def test_events_report_every_transition_and_resume(berth: BerthProcess, client: httpx.Client) -> None:
    with client.stream("GET", "/events") as stream:
        starter = threading.Thread(target=_create_elsewhere, args=(berth, "seen"))
        starter.start()
        seen = [event for event in _events(stream, until="running") if event["instance_id"] == "seen"]
        starter.join()
    assert [event["status"] for event in seen] == ["starting", "health_checking", "running"]
    with client.stream("GET", "/events", headers={"Last-Event-ID": str(seen[0]["id"])}) as stream:
        again = _events(stream, until="running")
    assert [event["status"] for event in again] == ["health_checking", "running"]


def _create_elsewhere(berth: BerthProcess, name: str) -> None:
    with berth.client() as client:
        client.post("/instances?wait=30", json=fake(name))


def _events(stream: httpx.Response, until: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    fields: dict[str, str] = {}
    for line in stream.iter_lines():
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            events.append({"id": int(fields["id"]), **json.loads(fields["data"])})
            if events[-1].get("status") == until:
                break
            fields = {}
    return events


@pytest.mark.parametrize("path", ["/health", "/nothing", "/instances/none", "/proxy/none/x"])
def test_every_response_has_the_request_id(client: httpx.Client, path: str) -> None:
    assert client.get(path, headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(client.get(path).headers["x-request-id"]) > 8


def test_operations(client: httpx.Client) -> None:
    for path in ("/health", "/health/liveness", "/health/readiness"):
        assert client.get(path).json() == {"status": "ok"}
    assert client.get("/version").json() == {"version": "0.2.0"}
    assert client.get("/info").json()["max_instances"] == 3
    client.post("/instances?wait=30", json=fake("counted"))
    client.get("/proxy/counted/v1/models")
    metrics = client.get("/metrics").text
    assert 'berth_requests_total{code="200",instance="counted",method="GET",model="fake"} 1.0' in metrics


def test_every_route_is_documented(client: httpx.Client) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = "".join((docs / name).read_text() for name in ("http.md", "management-apis.md"))
    forwarded = with_forwarded({"paths": {}})["paths"]  # which the page has in two lines
    for path in set(client.get("/openapi.json").json()["paths"]) - set(forwarded):
        tail = path.removeprefix("/instances/{instance_id}")
        assert path.replace("instance_id", "id") in page or f"`{tail}`" in page, path


def test_the_same_idempotency_key_never_starts_two(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "one"}
    body = fake("keyed")
    del body["name"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/instances", json=body, headers=headers), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["instance_id"] for answer in answers}) == 1
    assert len(client.get("/instances").json()["data"]) == 1

    other = client.post("/instances", json=body | {"timeout": 5}, headers=headers)
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")
    again = client.post("/instances", json=body, headers={"Idempotency-Key": "two"})
    assert again.json()["instance_id"] != answers[0].json()["instance_id"]

    client.delete(f"/instances/{again.json()['instance_id']}", params={"force": "true"})
    anew = client.post("/instances", json=body, headers={"Idempotency-Key": "two"})
    assert anew.status_code == 201
