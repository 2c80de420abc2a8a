"""Traces: a span for every request if a collector is configured; trace headers on every route."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api.access.keys import key_id_of
from tests.berth_process import ROOT, BerthProcess, free_port, running_berth
from tests.collector import Collector
from tests.fake_engine import command

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE = f"00-{TRACE_ID}-{PARENT_ID}-01"
SERVER = 2  # a span's kind


@contextmanager
def traced_berth(folder: Path, endpoint: str, **settings: str) -> Iterator[tuple[BerthProcess, httpx.Client]]:
    """With a running instance `one` of the model `fake`."""
    sdk = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20"}
    with running_berth(folder, **sdk, **settings) as berth, berth.client() as client:
        body = {"model_name": "fake", "engine": "command", "name": "one", "command": command()}
        assert client.post("/instances?wait=30", json=body).status_code == 201
        yield berth, client


@pytest.mark.parametrize("path", ["/proxy/one/headers", "/v1/headers"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_without_a_collector_trace_headers_pass_unchanged(tmp_path: Path, path: str, is_stream: bool) -> None:
    with running_berth(tmp_path) as berth, berth.client() as client:
        body = {"model_name": "fake", "engine": "command", "name": "one", "command": command()}
        client.post("/instances?wait=30", json=body)
        headers = {"traceparent": TRACE, "tracestate": "vendor=1"}
        answer = client.post(path, json={"model": "fake", "stream": is_stream}, headers=headers).json()
    assert (answer["traceparent"], answer["tracestate"]) == (TRACE, "vendor=1")


def test_a_span_is_between_the_callers_and_the_engines(tmp_path: Path) -> None:
    """Also when a connection sends the same head again, with another parent."""
    with Collector().running() as collector, traced_berth(tmp_path, collector.url) as (_, client):
        for number, path in enumerate(["/proxy/one/headers", "/proxy/one/headers", "/v1/headers"]):
            trace_id = f"{number + 1:032x}"
            headers = {"traceparent": f"00-{trace_id}-{PARENT_ID}-01", "x-request-id": f"id-{number}"}
            answer = client.post(path, json={"model": "fake"}, headers=headers | {"tracestate": "a=1"}).json()
            span = collector.span(f"id-{number}")
            assert (span["trace_id"], span["parent_id"]) == (trace_id, PARENT_ID)
            assert answer["traceparent"] == f"00-{trace_id}-{span['span_id']}-01"
            assert answer["tracestate"] == "a=1"
        same = [client.get("/proxy/one/headers").json()["traceparent"] for _ in range(4)]
        assert len(set(same)) == 4


def test_unsampled_requests_are_not_exported_and_marked_for_the_engine(tmp_path: Path) -> None:
    with Collector().running() as collector, traced_berth(tmp_path, collector.url) as (_, client):
        headers = {"traceparent": TRACE.removesuffix("1") + "0", "x-request-id": "quiet"}
        answer = client.get("/proxy/one/headers", headers=headers).json()
        client.get("/proxy/one/x", headers={"traceparent": "00-nonsense", "x-request-id": "new"})
        span = collector.span("new")
        assert span["parent_id"] == "" and span["trace_id"] != TRACE_ID
        assert all(one["attributes"].get("berth.request.id") != "quiet" for one in collector.spans)
    assert answer["traceparent"].startswith(f"00-{TRACE_ID}-") and answer["traceparent"].endswith("-00")


def test_every_request_has_one_span_however_it_ends(tmp_path: Path) -> None:
    with (
        Collector().running() as collector,
        traced_berth(tmp_path, collector.url, API_KEYS="a-user-key") as (berth, client),
    ):
        prompt = {"model": "fake", "prompt": "what-was-said", "max_tokens": 3}

        def send(request_id: str, method: str, path: str, key: str = "a-user-key", **more: Any) -> Any:
            headers = {"x-request-id": request_id, "authorization": f"Bearer {key}"}
            client.request(method, path, headers=headers, **more)
            return collector.span(request_id)

        spans = [
            send("whole", "POST", "/v1/completions", json=prompt),
            send("streamed", "POST", "/v1/completions", json={**prompt, "stream": True}),
            send("slow", "POST", "/proxy/one/v1/completions", json={**prompt, "delay": 0.2}),
            send("unknown", "POST", "/v1/chat/completions", json={"model": "nobody"}),
            send("missing", "GET", "/proxy/two/x"),
            send("odd", "PURGE", "/proxy/one/x?secret=1"),
            send("control", "GET", "/instances/one?secret=1"),
            send("nothing", "GET", "/no/such/path"),
        ]
        with pytest.raises(InvalidStatus):
            connect(
                f"ws://127.0.0.1:{berth.port}/proxy/one/x",
                additional_headers={"authorization": "Bearer a-user-key", "x-request-id": "socket"},
                proxy=None,
            )
        spans.append(collector.span("socket"))
        leave(berth, client, collector)
        collector.wait_for(lambda: any(one["name"] == "berth.instance.start" for one in collector.spans))
        sent = str(collector.spans)
    statuses = [one["attributes"]["http.response.status_code"] for one in spans]
    assert statuses == [200, 200, 200, 404, 404, 200, 200, 404, 200]
    assert [one["name"] for one in spans] == [
        "POST /v1/completions",
        "POST /v1/completions",
        "POST /proxy/{instance_id}/{path}",
        "POST /v1/chat/completions",
        "GET /proxy/{instance_id}/{path}",
        "HTTP /proxy/{instance_id}/{path}",
        "GET /instances/{instance_id}",
        "GET",
        "GET /proxy/{instance_id}/{path}",
    ]
    assert {one["kind"] for one in spans} == {SERVER}
    for one in spans[:3]:
        about, events = one["attributes"], one["events"]
        assert (about["berth.instance.id"], about["gen_ai.request.model"]) == ("one", "fake")
        assert (about["berth.key.id"], about["gen_ai.usage.output_tokens"]) == (key_id_of("a-user-key"), 3)
        assert 0 < about["berth.first_byte.seconds"] == pytest.approx(events["berth.first_byte"], abs=1e-6)
        assert events["berth.first_byte"] <= one["seconds"]
    assert spans[2]["seconds"] >= 0.2
    for secret in ("secret=1", "what-was-said", "a-user-key"):
        assert secret not in sent


def test_a_wait_in_the_queue_is_recorded(tmp_path: Path) -> None:
    """And its line of the access log has the trace id."""
    settings = {"MAX_IN_FLIGHT": "1", "ACCESS_LOG": "true", "LOG_FORMAT": "json"}
    with (
        Collector().running() as collector,
        traced_berth(tmp_path, collector.url, **settings) as (berth, client),
    ):
        body = {"model": "fake", "delay": 0.3}
        with ThreadPoolExecutor(2) as pool:
            for name in ("first", "second"):
                pool.submit(
                    client.post, "/proxy/one/v1/completions", json=body, headers={"x-request-id": name}
                )
        spans = [collector.span("first"), collector.span("second")]
        output = berth.output()
    waited = [one for one in spans if "berth.queue.seconds" in one["attributes"]]
    assert len(waited) == 1
    assert 0 < waited[0]["attributes"]["berth.queue.seconds"] <= waited[0]["seconds"] - 0.3
    assert waited[0]["events"]["berth.leased"] < waited[0]["events"]["berth.first_byte"]
    lines = [json.loads(line) for line in output.splitlines()]
    traces = {line.get("request_id"): line.get("trace_id") for line in lines}
    assert [traces["first"], traces["second"]] == [one["trace_id"] for one in spans]


def leave(berth: BerthProcess, client: httpx.Client, collector: Collector) -> None:
    """A client that disconnects in the middle of its stream."""
    headers = {"x-request-id": "left", "authorization": "Bearer a-user-key"}
    body = {"model": "fake", "max_tokens": 10_000, "stream": True}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        next(answer.iter_raw())
    assert 0 < collector.span("left")["seconds"] < 30


def test_a_start_has_its_own_span_and_a_failed_one_the_reason(tmp_path: Path) -> None:
    with Collector().running() as collector, traced_berth(tmp_path, collector.url) as (_, client):
        failing = command("--fail-with", "CUDA out of memory")
        body = {"model_name": "fake", "engine": "command", "name": "two", "command": failing}
        client.post("/instances?wait=30", json=body)

        def starts() -> list[dict[str, Any]]:
            return [one for one in collector.spans if one["name"] == "berth.instance.start"]

        collector.wait_for(lambda: len(starts()) == 2)
    good, bad = sorted(starts(), key=lambda one: one["attributes"]["berth.instance.id"])
    assert good["attributes"] == {
        "berth.instance.id": "one",
        "gen_ai.request.model": "fake",
        "berth.instance.state": "running",
    }
    assert 0 < good["seconds"] < 30 and not good["is_error"]
    assert bad["is_error"] and bad["attributes"]["error.type"] == "out_of_memory"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_failing_collector_affects_no_request_and_no_shutdown(tmp_path: Path, is_there: bool) -> None:
    with Collector().running() as collector:
        collector.status = 500
        endpoint = collector.url if is_there else f"http://127.0.0.1:{free_port()}"
        with traced_berth(tmp_path, endpoint, LOG_OTLP="true") as (_, client):
            for _ in range(100):
                assert client.get("/proxy/one/x").status_code == 200
            if is_there:
                collector.wait_for(lambda: len(collector.requests) > 0)
            begun = time.monotonic()
        assert time.monotonic() - begun < 20


def test_the_sdks_variables_work_and_its_headers_do_not_reach_engines(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTEL_EXPORTER_OTLP_HEADERS=api-key=a-secret\nOTEL_SERVICE_NAME=harbour\n")
    with Collector().running() as collector, traced_berth(tmp_path, collector.url) as (_, client):
        environment = client.get("/proxy/one/env").json()
        collector.wait_for(lambda: len(collector.spans) > 0)
    assert collector.requests[0]["api-key"] == "a-secret"
    assert collector.resources[0]["service.name"] == "harbour"
    assert "a-secret" not in str(environment) and "OTEL_SERVICE_NAME" not in environment


def test_without_its_packages_berth_serves_and_logs_what_is_missing(tmp_path: Path) -> None:
    """They are installed, so the test hides them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"
    )
    path = f"{ROOT}:{tmp_path}"
    with traced_berth(tmp_path, "http://127.0.0.1:1", PYTHONPATH=path) as (_, client):
        assert client.get("/proxy/one/x").status_code == 200
    log = (tmp_path / "berth.log").read_text()
    assert (
        "opentelemetry.exporter" in log
        and "isn't installed" in log
        and "pip install -r requirements.txt" in log
    )
