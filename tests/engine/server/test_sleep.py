"""/sleep and related routes over HTTP: their responses, and that the engine works afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.config import EngineConfig
from engine.execution.build import build_core
from tests.engine.server.serving import Running, fake_core, running, wait_until

COMPLETIONS = "/v1/completions"
BODY: dict[str, Any] = {"prompt": "abcdefgh" * 8, "max_tokens": 12, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Running]:
    config = EngineConfig(
        model=tiny_model, dtype="float32", device="cpu", max_model_len=200, max_num_seqs=4, num_threads=1
    )
    with running(tiny_model, lambda: build_core(config, eos_token_ids=[0]), enable_sleep_mode=True) as real:
        yield real


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client
        assert client.post("/wake_up").status_code == 200
        server.wait_idle()


def text_of(client: httpx.Client) -> str:
    answer = client.post(COMPLETIONS, json=BODY)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def is_sleeping(client: httpx.Client) -> bool:
    asleep: bool = client.get("/is_sleeping").json()["is_sleeping"]
    return asleep


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("tags", ["", "?tags=weights&tags=kv_cache"])
def test_an_engine_sleeps_and_wakes_up(client: httpx.Client, level: int, tags: str) -> None:
    before = text_of(client)
    assert not is_sleeping(client)
    assert client.post(f"/sleep?level={level}").json() == {"status": "sleeping", "level": level}
    assert is_sleeping(client)
    refused = client.post(COMPLETIONS, json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_asleep")
    assert int(refused.headers["retry-after"]) >= 1
    for path in ("/health", "/version", "/v1/models", "/metrics"):
        assert client.get(path).status_code == 200
    assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200
    woken = client.post(f"/wake_up{tags}").json()
    assert woken == {"status": "awake", "tags": ["weights", "kv_cache"] if tags else None}
    assert not is_sleeping(client)
    assert text_of(client) == before


def sleep_states(client: httpx.Client) -> dict[str, float]:
    """The sleep state in /metrics, by vLLM's label."""
    [family] = [
        family
        for family in text_string_to_metric_families(client.get("/metrics").text)
        if family.name == "vllm:engine_sleep_state"
    ]
    return {sample.labels["sleep_state"]: sample.value for sample in family.samples}


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("order", [("weights", "kv_cache"), ("kv_cache", "weights")])
def test_an_engine_wakes_up_in_two_steps(client: httpx.Client, level: int, order: tuple[str, str]) -> None:
    before = text_of(client)
    awake = client.get("/memory").json()
    client.post(f"/sleep?level={level}")
    first, second = order
    assert client.post(f"/wake_up?tags={first}").json() == {"status": "sleeping", "tags": [first]}
    assert is_sleeping(client)
    refused = client.post(COMPLETIONS, json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_asleep")
    assert f"({second})" in refused.json()["error"]["message"]
    assert client.get("/memory").json()[first] == awake[first]
    assert client.post(f"/wake_up?tags={first}").json()["status"] == "sleeping", "it is awake already"
    assert client.post(f"/wake_up?tags={second}").json() == {"status": "awake", "tags": [second]}
    assert not is_sleeping(client)
    assert client.get("/memory").json() == awake
    assert text_of(client) == before


def test_sleep_can_deepen_but_never_wakes_up(client: httpx.Client) -> None:
    before = text_of(client)
    awake = client.get("/memory").json()
    assert sleep_states(client) == {"awake": 1, "weights_offloaded": 0, "discard_all": 0}
    assert client.post("/sleep?level=1").json()["level"] == 1
    assert client.get("/memory").json() == {**awake, "kv_cache": 0}, "on a CPU, weights stay where they are"
    assert sleep_states(client) == {"awake": 0, "weights_offloaded": 1, "discard_all": 0}
    asleep = {"device": "cpu", "weights": 0, "kv_cache": 0, "host_weights": 0}
    for level in (2, 1):
        assert client.post(f"/sleep?level={level}").json() == {"status": "sleeping", "level": 2}
        assert is_sleeping(client)
        assert client.get("/memory").json() == asleep
        assert sleep_states(client) == {"awake": 0, "weights_offloaded": 0, "discard_all": 1}
    client.post("/wake_up?tags=weights")
    assert sleep_states(client) == {"awake": 0, "weights_offloaded": 1, "discard_all": 0}
    assert client.post("/sleep?level=1").json()["level"] == 1, "the weights are there again"
    client.post("/wake_up")
    assert sleep_states(client) == {"awake": 1, "weights_offloaded": 0, "discard_all": 0}
    assert text_of(client) == before


def test_running_requests_end_or_finish_before_sleep(server: Running, client: httpx.Client) -> None:
    """With vLLM's mode `abort` they end with partial output; with `wait` they finish first."""
    long = {**BODY, "prompt": "a", "max_tokens": 199}
    for mode, reason in (("abort", "abort"), ("wait", "length")):
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, f"{server.url}{COMPLETIONS}", json=long, timeout=60)
            wait_until(lambda: server.engine.num_unfinished == 1)
            assert client.post(f"/sleep?mode={mode}").status_code == 200
            assert asked.result().json()["choices"][0]["finish_reason"] == reason
        client.post("/wake_up")


def test_the_prefix_cache_can_be_cleared(client: httpx.Client) -> None:
    def cached() -> int:
        usage = client.post(COMPLETIONS, json=BODY).json()["usage"]
        number: int = usage["prompt_tokens_details"]["cached_tokens"]
        return number

    cached()
    assert cached() > 0
    assert client.post("/reset_prefix_cache").json() == {"success": True}
    assert cached() == 0


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/sleep?level=0", "level"),
        ("/sleep?level=3", "level"),
        ("/sleep?level=deep", "level"),
        ("/sleep?mode=keep", "mode"),
        ("/wake_up?tags=legs", "tags"),
        ("/wake_up?tags=weights&tags=", "tags"),
    ],
)
def test_invalid_requests_are_refused(client: httpx.Client, path: str, param: str) -> None:
    answer = client.post(path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not is_sleeping(client)


def test_without_the_flag_the_routes_do_not_exist(fake_server: Running) -> None:
    with fake_server.http() as client:
        for method, path in (
            ("POST", "/sleep"),
            ("POST", "/wake_up"),
            ("GET", "/is_sleeping"),
            ("GET", "/memory"),
            ("POST", "/reset_prefix_cache"),
        ):
            answer = client.request(method, path)
            assert answer.status_code == 404
            assert "--enable-sleep-mode" in answer.json()["error"]["message"]


def test_the_memory_report_requires_a_key(fake_model: Path) -> None:
    options: dict[str, Any] = {"api_keys": ("secret",), "enable_sleep_mode": True}
    with running(fake_model, fake_core(fake_model), **options) as server, server.http() as client:
        assert client.get("/memory").status_code == 401
        answer = client.get("/memory", headers={"Authorization": "Bearer secret"})
        assert answer.json()["device"] == "cpu"
