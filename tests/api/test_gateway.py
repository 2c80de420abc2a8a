"""Models by name, through a real Berth: started on request, shared, evicted, put to sleep and woken."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

CATALOG: dict[str, Any] = {
    "plain": {"aliases": ["gpt-fake"], "command": command()},
    "filtered": {
        "command": command("--served-model-name", "filtered"),
        "filters": {"set_params": {"temperature": 0}, "strip_params": ["user"]},
    },
    "broken": {"command": command("--fail-with", "CUDA out of memory")},
    "slow": {"command": command("--slow-start", "1.5")},
    "narrow": {"command": command(), "concurrency_limit": 1, "max_replicas": 2},
    "gone": {"command": command()},
    **{name: {"command": command()} for name in ("mortal", "stopped", "busy")},
}


@contextmanager
def berth_with(directory: Path, models: dict[str, Any], **settings: str) -> Iterator[BerthProcess]:
    catalog = directory / "models.yaml"
    catalog.write_text(json.dumps({"models": models}))  # JSON is YAML
    settings = {"MODELS_FILE": str(catalog), "STATE_DIR": str(directory / "state"), **settings}
    with running_berth(directory, **settings) as berth:
        yield berth


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    with berth_with(
        tmp_path_factory.mktemp("gateway"), CATALOG, VLLM_MAX_INSTANCES="9", APP_DEBUG="true"
    ) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_of(berth) as client:
        yield client


def client_of(berth: BerthProcess) -> httpx.Client:
    limits = httpx.Limits(max_connections=None)
    return httpx.Client(base_url=berth.url, timeout=120, limits=limits, trust_env=False)


def ask(client: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": "a", "max_tokens": 2, **fields}
    return client.post("/v1/completions", json=body, timeout=60)


def replicas(client: httpx.Client, model: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = client.get("/instances", params={"all": "true"}).json()["data"]
    return [record for record in records if record["profile"] == model]


def test_a_request_by_name_or_alias_starts_the_model(client: httpx.Client) -> None:
    listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
    assert {"plain", "berth-demo"} <= listed.keys()
    assert listed["plain"]["state"] == "stopped"

    assert ask(client, "gpt-fake").json()["choices"][0]["text"] == " token0 token1"

    assert client.get("/v1/models/plain").json()["state"] == "running"
    record = client.get("/models/gpt-fake").json()
    assert (record["name"], record["source"], len(record["replicas"])) == ("plain", "catalog", 1)
    assert client.post("/chat/completions", json={"model": "plain", "messages": []}).status_code == 200
    streamed = client.post("/v1/completions", json={"model": "plain", "prompt": "a", "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_an_unknown_model_is_refused_with_similar_names(client: httpx.Client, berth: BerthProcess) -> None:
    response = ask(client, "plian")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "did you mean 'plain'" in error["message"]
    request_id = response.headers["x-request-id"]
    assert any("404" in line and request_id in line for line in berth.output().splitlines())


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[1]", 400, None),
        (b'{"model": 3}', 400, "model"),
        (b'{"model": "plain", "keep_alive": "soon"}', 400, "keep_alive"),
    ],
)
def test_invalid_bodies_are_refused_by_the_gateway(
    client: httpx.Client, body: bytes, status: int, param: str | None
) -> None:
    response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("content-type", "multipart/form-data; boundary=x", "invalid_form"),
        ("content-encoding", "gzip", "invalid_content_encoding"),
        ("content-encoding", "br", "unsupported_content_encoding"),
    ],
)
def test_a_short_body_is_read_as_its_head_says_like_a_long_one(
    client: httpx.Client, berth: BerthProcess, header: str, value: str, code: str
) -> None:
    body = b'{"model": "gone", "prompt": "a"}'
    assert ask(client, "gone").status_code == 200  # then an engine's connection is idle
    connection = HTTPConnection("127.0.0.1", berth.port, timeout=60)
    with closing(connection):
        for padded in (body, body, body + b" " * 100_000):  # a short one arrives with its head
            connection.request("POST", "/v1/completions", padded, {header: value})
            refused = connection.getresponse().read()
            assert json.loads(refused)["error"]["code"] == code


def test_bodies_are_changed_only_by_the_profile(client: httpx.Client) -> None:
    raw = b'{ "model":"filtered",  "user": "me", "input": "\xc3\xa9", "temperature": 1}'
    headers = {"content-type": "application/json"}
    changed = client.post("/v1/embeddings?x=%2F", content=raw, headers=headers).json()
    assert changed["target"] == "/v1/embeddings?x=%2F"
    assert json.loads(changed["body"]) == {"model": "filtered", "input": "é", "temperature": 0}

    served = client.get("/models/plain").json()["model"]
    raw = json.dumps({"model": served, "input": "é"}, indent=3).encode()
    assert client.post("/v1/embeddings", content=raw, headers=headers).json()["body"].encode() == raw


def test_a_form_is_routed_by_its_model_field(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/audio/transcriptions", data={"model": "gpt-fake"}, files={"file": b"x" * 300_000}
    ).json()
    assert answer["target"] == "/v1/audio/transcriptions"
    assert answer["bytes"] > 300_000
    served = client.get("/models/gpt-fake").json()["model"]
    assert f'name="model"\r\n\r\n{served}\r\n' in answer["body"], "an alias is replaced by the served name"


def test_a_hundred_first_requests_cause_one_start(client: httpx.Client, berth: BerthProcess) -> None:
    with ThreadPoolExecutor(100) as pool, client_of(berth) as many:
        answers = list(pool.map(lambda _: ask(many, "slow"), range(100)))
    assert Counter(answer.status_code for answer in answers) == {200: 100}
    assert [record["restarts"] for record in replicas(client, "slow")] == [0]


def test_a_failed_start_ends_all_waiting_requests_and_is_not_repeated_at_once(
    client: httpx.Client, berth: BerthProcess
) -> None:
    with ThreadPoolExecutor(10) as pool, client_of(berth) as many:
        answers = list(pool.map(lambda _: ask(many, "broken"), range(10)))
    assert {answer.status_code for answer in answers} == {503}
    assert all("out of memory" in answer.json()["error"]["message"] for answer in answers)
    assert len(replicas(client, "broken")) == 1

    again = ask(client, "broken")
    assert again.status_code == 503
    assert 1 <= int(again.headers["retry-after"]) <= 10
    assert client.get("/models/broken").json()["state"] == "failed"


def test_a_disconnect_during_a_start_does_not_stop_it(client: httpx.Client) -> None:
    client.post("/models/slow/stop")
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={"model": "slow", "prompt": "a"}, timeout=0.3)
    started = client.post("/models/slow/start", params={"wait": 30}).json()
    assert started["state"] == "running"
    assert (started["queued"], started["in_flight"]) == (0, 0)


def test_a_keep_alive_of_zero_unloads_after_the_request(client: httpx.Client) -> None:
    assert ask(client, "gone", keep_alive=0).status_code == 200
    deadline = time.monotonic() + 20
    while client.get("/models/gone").json()["state"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ask(client, "gone", keep_alive="5m").status_code == 200
    assert [record["timeout"] for record in replicas(client, "gone")] == [300]


def test_a_busy_model_gets_another_replica(client: httpx.Client, berth: BerthProcess) -> None:
    with ThreadPoolExecutor(6) as pool, client_of(berth) as many:
        answers = list(pool.map(lambda _: ask(many, "narrow", delay=3), range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(replicas(client, "narrow")) == 2


def test_the_catalog_is_watched_and_written(client: httpx.Client, berth: BerthProcess) -> None:
    patched = client.patch("/models/gone", json={"timeout": 7, "pinned": True})
    assert (patched.status_code, patched.json()["pinned"], patched.json()["timeout"]) == (200, True, 7)
    wrong = client.patch("/models/gone", json={"params": {"--": 1}})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "invalid_spec")
    assert client.post("/reload").json()["changed"] == []


def test_without_autostart_a_stopped_model_is_refused(tmp_path: Path) -> None:
    models = {"one": {"command": command()}}
    with berth_with(tmp_path, models, AUTOSTART="false") as berth, client_of(berth) as client:
        refused = ask(client, "one")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "instance_not_running")
        started = client.post("/models/one/start", params={"wait": 30})
        assert started.json().get("state") == "running", started.text
        assert ask(client, "one").status_code == 200


def test_three_models_share_memory_for_two(tmp_path: Path) -> None:
    models = {name: {"command": command("--ballast-mb", "450")} for name in ("a", "b", "c")}
    settings = {"HOST_MEMORY": "1.2", "MIN_RESIDENCY": "0.2", "MAX_WAIT": "0.5"}
    with berth_with(tmp_path, models, **settings) as berth, client_of(berth) as client:
        for name in "abc":  # of a command nothing is known before its first run
            assert ask(client, name).status_code == 200

        def work(index: int) -> list[int]:
            return [ask(client, "abc"[(index + turn) % 3]).status_code for turn in range(4)]

        with ThreadPoolExecutor(6) as pool:
            answers = [status for statuses in pool.map(work, range(6)) for status in statuses]
        assert Counter(answers) == {200: 24}
        deadline = time.monotonic() + 20
        while len(client.get("/instances").json()["data"]) > 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_least_recently_used_model_is_evicted_if_no_port_is_free(tmp_path: Path) -> None:
    models = {name: {"command": command()} for name in ("a", "b", "c")}
    settings = {"VLLM_MAX_INSTANCES": "2", "MIN_RESIDENCY": "0"}
    with berth_with(tmp_path, models, **settings) as berth, client_of(berth) as client:
        for name in "abca":
            assert ask(client, name).status_code == 200
        live = [record["profile"] for record in client.get("/instances").json()["data"]]
        assert sorted(live) == ["a", "c"]


def test_a_model_that_can_never_fit_is_refused_with_the_memorys_holders(tmp_path: Path) -> None:
    models = {
        "big": {"command": command("--ballast-mb", "700"), "pinned": True},
        "other": {"command": command("--ballast-mb", "700")},
    }
    with berth_with(tmp_path, models, HOST_MEMORY="1.1") as berth, client_of(berth) as client:
        # Nothing is known of a command's need before its first run.
        assert ask(client, "other").status_code == 200
        deadline = time.monotonic() + 20
        while not client.get("/models/other").json()["memory_bytes"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        client.post("/models/other/stop")
        assert ask(client, "big").status_code == 200
        refused = ask(client, "other")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_capacity")
        assert "big" in refused.json()["error"]["message"]


def test_a_sleeping_model_is_woken_by_a_request(client: httpx.Client) -> None:
    before = ask(client, "berth-demo", temperature=0).json()["choices"]
    (record,) = replicas(client, "berth-demo")
    own = f"/instances/{record['instance_id']}"
    for level in (1, 2):
        asleep = client.post("/models/berth-demo/sleep", params={"level": level}).json()
        assert asleep["state"] == "sleeping"
        assert client.get(own).json()["sleep_level"] == level
        assert ask(client, "berth-demo", temperature=0).json()["choices"] == before
    assert client.post(f"{own}/sleep").json()["status"] == "sleeping"
    through_proxy = client.post(
        f"/proxy/{record['instance_id']}/v1/completions", json={"prompt": "a", "max_tokens": 1}
    )
    assert through_proxy.status_code == 200
    assert client.post("/models/berth-demo/wake").json()["state"] == "running"
    (now,) = replicas(client, "berth-demo")
    assert (now["pid"], now["restarts"]) == (record["pid"], 0)


def test_an_idle_instance_may_sleep_instead_of_being_stopped(tmp_path: Path) -> None:
    settings = {"EXPIRE_ACTION": "sleep2", "VLLM_DEFAULT_TIMEOUT": "0.5"}
    with berth_with(tmp_path, {}, **settings) as berth, client_of(berth) as client:
        assert ask(client, "berth-demo").status_code == 200
        deadline = time.monotonic() + 20
        while client.get("/models/berth-demo").json()["state"] != "sleeping":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(client, "berth-demo").status_code == 200


def test_a_shutdown_ends_waiting_requests_at_once(tmp_path: Path) -> None:
    models = {"slow": {"command": command("--slow-start", "60")}}
    with berth_with(tmp_path, models) as berth, client_of(berth) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, "slow")
        while not client.get("/models/slow").json()["queued"]:
            time.sleep(0.02)
        os.kill(berth.pid, signal.SIGTERM)
        assert asked.result(timeout=10).status_code == 503


def lines_of(client: httpx.Client, model: str, **fields: Any) -> tuple[int, list[str]]:
    body = {"model": model, "prompt": "a", "max_tokens": 2, "stream": True, **fields}
    with client.stream("POST", "/v1/completions", json=body) as response:
        return response.status_code, [line for line in response.iter_lines() if line]


@pytest.fixture(scope="module")
def commenting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    """Streams that wait for their model get a comment now and then."""
    doom = "import sys, time; time.sleep(1); sys.exit('CUDA out of memory')"
    models = {
        "slow": {"command": command("--slow-start", "1")},
        "late": {"command": command("--slow-start", "1")},
        "doomed": {"command": [sys.executable, "-c", doom, "{port}"]},
        "quick": {"command": command()},
    }
    with berth_with(tmp_path_factory.mktemp("commenting"), models, STREAM_KEEPALIVE="0.2") as berth:
        yield berth


def test_a_waiting_stream_is_kept_alive_by_comments(commenting: BerthProcess) -> None:
    with client_of(commenting) as client:
        status, lines = lines_of(client, "slow")
        assert (status, lines[0], lines[-1]) == (200, ": waiting for the model", "data: [DONE]")
        assert 2 <= lines.count(lines[0]) <= len(lines) - 3
        status, lines = lines_of(client, "slow")
        assert not lines[0].startswith(":")

        status, lines = lines_of(client, "slow", delay=0.5)  # the engine itself is slow
        assert lines.count(": waiting for the model") >= 1
        assert lines[-1] == "data: [DONE]"

        status, lines = lines_of(client, "doomed")
        assert (status, lines[0]) == (200, ": waiting for the model")
        error = json.loads(lines[-1].removeprefix("data: "))["error"]
        assert "out of memory" in error["message"]

        ask(client, "quick")
        assert_unbuffered(client, "quick")


def test_a_waiting_stream_is_marked_unbuffered(commenting: BerthProcess) -> None:
    with client_of(commenting) as client:
        assert_unbuffered(client, "late")
        (record,) = replicas(client, "late")
        for path in ("/events", f"/instances/{record['instance_id']}/logs?follow=true"):
            with client.stream("GET", path, headers={"last-event-id": "0"}) as response:
                assert response.headers["x-accel-buffering"] == "no", path


def assert_unbuffered(client: httpx.Client, model: str) -> None:
    with client.stream("POST", "/v1/completions", json={"model": model, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers.get_list("x-accel-buffering") == ["no"]
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_a_request_of_an_engine_that_died_is_retried_on_another(client: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert ask(client, "mortal").status_code == 200
        (first,) = replicas(client, "mortal")
        asked = [pool.submit(ask, client, "mortal", delay=0.5) for _ in range(4)]
        while client.get(f"/instances/{first['instance_id']}").json()["in_flight"] < 4:
            time.sleep(0.02)
        os.kill(first["pid"], signal.SIGKILL)
        answers = [one.result(timeout=30) for one in asked]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {answer.json()["choices"][0]["text"] for answer in answers} == {" token0 token1"}


def test_a_request_of_an_engine_that_was_stopped_is_not_retried(client: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert ask(client, "stopped").status_code == 200
        (first,) = replicas(client, "stopped")
        asked = pool.submit(ask, client, "stopped", delay=20)
        while client.get(f"/instances/{first['instance_id']}").json()["in_flight"] < 1:
            time.sleep(0.02)
        client.post("/models/stopped/stop", params={"force": "true"}).raise_for_status()
        assert asked.result(timeout=10).status_code == 502
        assert client.get("/models/stopped").json()["state"] == "stopped"


def test_a_request_while_its_model_stops_waits_and_starts_it_again(client: httpx.Client) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert ask(client, "busy").status_code == 200
        (first,) = replicas(client, "busy")
        asked = pool.submit(ask, client, "busy", delay=1)
        while not client.get("/models/busy").json()["in_flight"]:
            time.sleep(0.02)
        stopping = pool.submit(client.post, "/models/busy/stop")
        while client.get(f"/instances/{first['instance_id']}").json()["status"] != "stopping":
            time.sleep(0.02)
        assert ask(client, "busy").status_code == 200
        assert (asked.result().status_code, stopping.result().status_code) == (200, 200)
        assert [record["instance_id"] for record in replicas(client, "busy")] == [first["instance_id"]]
