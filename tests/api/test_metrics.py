"""`/metrics` of a real Berth: its own metrics, its engines', and targets for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

CATALOG = """\
models:
  small:
    engine: command
    command: {command}
"""


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("metrics")
    catalog = folder / "models.yaml"
    catalog.write_text(CATALOG.format(command=command("--chunk-delay", "0")))
    with running_berth(folder, MODELS_FILE=str(catalog), MODEL_DIRS="") as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with berth.client() as client:
        yield client
        for instance in client.get("/instances", params={"all": "true"}).json()["data"]:
            client.delete(f"/instances/{instance['instance_id']}", params={"force": "true"})


def start(client: httpx.Client, name: str, *flags: str) -> None:
    body = {"model_name": "fake", "engine": "command", "name": name, "command": command(*flags)}
    client.post("/instances?wait=30", json=body)


def scrape(client: httpx.Client, path: str = "/metrics", **params: str) -> dict[str, Metric]:
    response = client.get(path, params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    types = [line for line in response.text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    found = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in found}) == len(found)
    samples = [(s.name, tuple(sorted(s.labels.items()))) for family in found for s in family.samples]
    assert len(samples) == len(set(samples))
    return {family.name: family for family in found}


def value(page: dict[str, Metric], family: str, sample: str | None = None, **labels: str) -> float | None:
    """The only sample with these labels."""
    found = [
        one.value
        for one in page[family].samples
        if one.name == (sample or one.name) and labels.items() <= one.labels.items()
    ]
    assert len(found) < 2, found
    return found[0] if found else None


def test_engines_metrics_are_merged_under_their_labels(client: httpx.Client) -> None:
    start(client, "one")
    start(client, "two")
    page = scrape(client)
    for name in ("one", "two"):
        labels = {"instance": name, "model": "fake"}
        assert value(page, "vllm:generation_tokens", "vllm:generation_tokens_total", **labels) == 42
        count = "vllm:time_to_first_token_seconds_count"
        assert value(page, "vllm:time_to_first_token_seconds", count, **labels) == 2
        assert value(page, "process_resident_memory_bytes", **labels) == 1.5e7
        assert value(page, "fake_labelled", **labels, exported_instance="its own") == 1
        assert value(page, "berth_engine_scrape_success", **labels) == 1
        assert value(page, "berth_engine_scrape_lines_left_out", **labels) == 2
    assert value(page, "berth_instances", state="running") == 2  # whatever an engine says
    own = [one for one in page["process_resident_memory_bytes"].samples if not one.labels]
    assert len(own) == 1
    assert not [name for name in scrape(client, engines="false") if name.startswith("vllm:")]


def test_an_engine_without_metrics_is_left_out_and_counted(client: httpx.Client) -> None:
    start(client, "good")
    start(client, "slow", "--metrics-delay", "30")
    page = scrape(client)
    assert value(page, "berth_engine_scrape_success", instance="slow") == 0
    assert value(page, "berth_engine_scrape_success", instance="good") == 1
    assert value(page, "berth_engine_scrape_failures", reason="timeout") == 1
    assert value(page, "vllm:num_requests_running", instance="slow") is None
    assert value(page, "vllm:num_requests_running", instance="good") == 0
    assert client.get("/metrics/instances/slow").status_code == 504


def test_targets_can_be_scraped_by_prometheus(berth: BerthProcess, client: httpx.Client) -> None:
    start(client, "one")
    start(client, "stopped")
    client.post("/instances/stopped/stop")
    response = client.get("/metrics/targets")
    assert response.headers["content-type"] == "application/json"
    (group,) = response.json()
    labels = group["labels"]
    assert group["targets"] == [f"127.0.0.1:{berth.port}"]
    assert (labels["instance"], labels["model"], labels["__scheme__"]) == ("one", "fake", "http")
    before = client.get("/instances/one").json()["last_active"]
    url = f"{labels['__scheme__']}://{group['targets'][0]}{labels['__metrics_path__']}"
    page = scrape(client, url)
    assert value(page, "vllm:generation_tokens", model_name="fake") == 42
    assert "berth_instances" not in page
    # To be looked at is no use: an idle engine expires all the same.
    assert client.get("/instances/one").json()["last_active"] == pytest.approx(before, abs=1e-3)
    assert client.get("/metrics/instances/stopped").status_code == 409
    assert client.get("/metrics/instances/none").status_code == 404


def test_lifecycle_events_are_counted(client: httpx.Client) -> None:
    before = scrape(client)

    def more(family: str, sample: str | None = None, **labels: str) -> float:
        return (value(page, family, sample, **labels) or 0) - (value(before, family, sample, **labels) or 0)

    start(client, "one")
    client.post("/instances/one/restart?wait=30")
    start(client, "bad", "--fail-with", "no such thing")
    page = scrape(client)
    assert more("berth_instance_starts", model="fake") == 3
    assert more("berth_instance_restarts", model="fake") == 1
    assert more("berth_instance_failures", **{"model": "fake", "class": "crashed"}) == 1
    assert more("berth_instance_load_seconds", "berth_instance_load_seconds_count", model="fake") == 2
    assert value(page, "berth_instances", state="running") == 1
    assert value(page, "berth_instances", state="failed") == 1
    assert value(page, "berth_instance_state", instance="bad", state="failed") == 1
    assert value(page, "berth_instance_state", instance="bad", state="running") == 0
    held = value(page, "berth_instance_memory_bytes", instance="one", device="host")
    size = value(page, "berth_device_memory_size_bytes", device="host")
    free = value(page, "berth_device_memory_free_bytes", device="host")
    assert held is not None and size is not None and free is not None
    assert 10**6 < held < size
    assert 0 < free < size


@pytest.mark.parametrize("way", ["/proxy/one/v1/completions", "/v1/completions"])
def test_tokens_are_counted_on_every_route(client: httpx.Client, way: str) -> None:
    """In a whole response, a late one, streams with and without usage, and a broken one."""
    start(client, "one")

    def completion_tokens() -> float:
        return value(scrape(client), "berth_completion_tokens", instance="one") or 0

    telling = {"stream": True, "stream_options": {"include_usage": True}}
    for number, more in ((1, {}), (20, {"delay": 0.1}), (30, telling), (40, {"stream": True})):
        before = completion_tokens()
        answer = client.post(way, json={"model": "fake", "max_tokens": number, **more})
        assert answer.status_code == 200
        assert completion_tokens() - before == number
    with client.stream("POST", way, json={"model": "fake", "max_tokens": 10_000, **telling}) as answer:
        next(answer.iter_raw())
    deadline = time.monotonic() + 30
    while completion_tokens() == 91:  # until Berth has seen that its client has left
        assert time.monotonic() < deadline
    assert value(scrape(client), "berth_prompt_tokens", instance="one") == 0


def test_a_model_of_the_catalog_has_its_own_name_everywhere(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"model": "small", "prompt": "x", "max_tokens": 2})
    assert answer.status_code == 200
    page = scrape(client)
    assert value(page, "berth_requests", model="small", code="200") == 1
    assert value(page, "berth_queue_wait_seconds", "berth_queue_wait_seconds_count", model="small") == 1
    assert (
        value(page, "berth_queue_wait_seconds", "berth_queue_wait_seconds_sum", model="small") or 0
    ) > 0.01
    assert value(page, "berth_model_requests_waiting", model="small") == 0
    assert value(page, "berth_instance_starts", model="small") == 1
    assert value(page, "vllm:num_requests_running", model="small") == 0
    assert value(page, "berth_models", status="running") == 1


def test_unauthenticated_requests_create_no_labels(client: httpx.Client) -> None:
    start(client, "one")
    hostile: list[Any] = ['x"} 1\nberth_up{a="', "../../etc", "\\", "ü" * 50]
    for name in hostile:
        client.post("/v1/chat/completions", json={"model": name, "messages": []})
        client.request("PROPFIND", "/proxy/one/v1/models")
        client.get(f"/proxy/{name.encode().hex()}/x")
    text = client.get("/metrics").text
    assert "etc" not in text
    assert "PROPFIND" not in text
    assert 'method="other"' in text
    scrape(client)


def test_refused_requests_are_counted_without_an_instance(client: httpx.Client) -> None:
    before = scrape(client)
    client.post("/v1/completions", json={"model": "none such", "prompt": "x"})
    client.post("/v1/completions", content=b"{")
    client.get("/instances", headers={"host": "elsewhere.example"})
    page = scrape(client)
    for method, code in (("POST", "404"), ("POST", "400"), ("GET", "403")):
        labels = {"instance": "", "model": "", "method": method, "code": code}
        assert (value(page, "berth_requests", **labels) or 0) - (
            value(before, "berth_requests", **labels) or 0
        ) == 1
