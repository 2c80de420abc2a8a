"""Auxiliary routes and features: health, keys, metrics, tokenize, the queue limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import __version__
from engine.config import ServerConfig
from engine.core.engine_core import EngineCore
from engine.server.http.errors import UnknownModel
from engine.server.model.served_model import load_served_model
from engine.text.tokenizer import load_tokenizer
from tests.engine.server.serving import (
    MAX_MODEL_LEN,
    Running,
    fake_core,
    running,
    wait_until,
    write_fake_model,
)
from tests.engine.server.test_streams import Valve

COMPLETIONS = "/v1/completions"


def test_small_routes(fake_server: Running) -> None:
    with fake_server.http() as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ping").status_code == client.post("/ping").status_code == 200
        assert client.get("/version").json() == {"version": __version__}
        fake_server.wait_idle()
        assert client.get("/load").json() == {"server_load": 0}


def test_the_version_is_the_project_version() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in text


def test_tokenize_and_detokenize(fake_server: Running) -> None:
    with fake_server.http() as client:
        answer = client.post("/tokenize", json={"prompt": "abc €", "return_token_strs": True}).json()
        assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == 7
        assert answer["max_model_len"] == MAX_MODEL_LEN
        back = client.post("/detokenize", json={"tokens": answer["tokens"]})
        assert back.json() == {"prompt": "abc €"}
        outside = client.post("/detokenize", json={"tokens": [259]})
        assert (outside.status_code, outside.json()["error"]["param"]) == (400, "tokens")


def test_tokenize_a_conversation(fake_server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    with fake_server.http() as client:
        tokens = client.post("/tokenize", json=body).json()["tokens"]
        text = client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
        assert text == "<user>Hi\n<assistant>"
        tokens = client.post("/tokenize", json={**body, "add_generation_prompt": False}).json()["tokens"]
        assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "<user>Hi\n"


def metrics(server: Running) -> dict[str, float]:
    """Samples by name; of the labels, only the finish reason is kept."""
    with server.http() as client:
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if "le" not in sample.labels:
                assert sample.labels["model_name"] == "fake"
                values[sample.name + sample.labels.get("finished_reason", "")] = sample.value
    return values


def test_metrics_count_requests_and_tokens(fake_model: Path) -> None:
    with running(fake_model, fake_core(fake_model)) as server:
        with server.http() as client:
            for prompt in ("abcdefgh" * 4, "abcdefgh" * 4, "xyz"):
                body = {"prompt": prompt, "max_tokens": 10, "ignore_eos": True, "seed": 1}
                assert client.post(COMPLETIONS, json=body).status_code == 200
            text = client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]
            stopped = client.post(COMPLETIONS, json={**body, "stop": text[1]}).json()["usage"]
        server.wait_idle()
        values = metrics(server)
    assert values["vllm:prompt_tokens_total"] == 32 + 32 + 3 + 3 + 3
    assert values["vllm:request_success_totallength"] == 4
    assert values["vllm:request_success_totalstop"] == 1
    assert 40 < values["vllm:generation_tokens_total"] <= 50
    assert 0 < values["vllm:prefix_cache_hits_total"] < values["vllm:prefix_cache_queries_total"]
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "num_preemptions_total",
    ):
        assert values[f"vllm:{name}"] == 0
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert values[f"vllm:{name}_count"] == 5, name
        assert values[f"vllm:{name}_sum"] >= 0
    assert 36 <= values["vllm:inter_token_latency_seconds_count"] <= 45
    assert values["vllm:request_prompt_tokens_sum"] == 32 + 32 + 3 + 3 + 3
    assert values["vllm:request_generation_tokens_sum"] == 4 * 10 + stopped["completion_tokens"]


def test_lengths_of_requests_are_counted_in_vllms_buckets(fake_model: Path) -> None:
    with running(fake_model, fake_core(fake_model)) as server, server.http() as client:
        body = {"prompt": "abc", "max_tokens": 7, "ignore_eos": True, "n": 2, "seed": 1}
        assert client.post(COMPLETIONS, json=body).status_code == 200
        page = client.get("/metrics").text
    for name, length in (("request_prompt_tokens", 3), ("request_generation_tokens", 7)):
        buckets = {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == f"vllm:{name}_bucket"
        }
        assert list(buckets) == [1, 2, 5, 10, 20, 50, 100, 200, float("inf")]  # the context is 200
        assert buckets == {limit: 2.0 * (limit >= length) for limit in buckets}, name


def test_the_cache_is_described_as_vllm_does(fake_model: Path) -> None:
    with running(fake_model, fake_core(fake_model)) as server, server.http() as client:
        page = client.get("/metrics").text
    (info,) = [one for one in text_string_to_metric_families(page) if one.name == "vllm:cache_config_info"]
    (sample,) = info.samples
    assert (info.type, sample.value) == ("gauge", 1)
    expected = {
        "block_size": "4",
        "enable_prefix_caching": "True",
        "engine": "0",
        "gpu_memory_utilization": "0.9",
        "kv_cache_max_concurrency": "10.24",
        "kv_cache_memory_bytes": "None",
        "kv_cache_size_tokens": "2048",
        "model_name": "fake",
        "num_gpu_blocks": "512",
    }
    assert expected.items() <= sample.labels.items()


@pytest.fixture(scope="module")
def guarded_server(fake_model: Path) -> Iterator[Running]:
    with running(fake_model, fake_core(fake_model), api_keys=("first", "second")) as server:
        yield server


def test_all_but_three_routes_require_a_key(guarded_server: Running) -> None:
    with guarded_server.http() as client:
        for path in ("/health", "/ping", "/version"):
            assert client.get(path).status_code == 200
        for path in (
            "/v1/models",
            "/metrics",
            "/load",
            "/v1/models/fake",
            "/openapi.json",
            "/docs",
            "/nothing",
        ):
            response = client.get(path)
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/tokenize", "/detokenize", COMPLETIONS):
            assert client.post(path, json={}).status_code == 401


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("Bearer first", 200),
        ("bearer second", 200),
        ("Bearer firs", 401),
        ("Bearer", 401),
        ("Basic first", 401),
        ("first", 401),
        ("Bearer fïrst", 401),
    ],
)
def test_keys(guarded_server: Running, value: str, status: int) -> None:
    with guarded_server.http() as client:
        headers = {b"Authorization": value.encode()}
        assert client.get("/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize(("value", "status"), [("first", 200), ("second", 200), ("firs", 401), ("", 401)])
def test_keys_as_anthropics_clients_send_them(guarded_server: Running, value: str, status: int) -> None:
    with guarded_server.http() as client:
        assert client.get("/v1/models", headers={"x-api-key": value}).status_code == status
        both = {"x-api-key": value, "Authorization": "Bearer second"}
        assert client.get("/v1/models", headers=both).status_code == 200


def test_requests_beyond_the_queue_are_429(fake_model: Path) -> None:
    valve = Valve()
    core = fake_core(fake_model, before=valve)
    with running(fake_model, core, max_num_seqs=2, max_waiting=1, shutdown_timeout_s=0.0) as server:
        body = {"prompt": "a", "max_tokens": 3}
        threads = [threading.Thread(target=_post, args=(server, body)) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.engine.num_unfinished == 3)
        with server.http() as client:
            response = client.post(COMPLETIONS, json=body)
            assert client.get("/load").json() == {"server_load": 3}
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["type"] == "rate_limit_error"
        valve.open()
        for thread in threads:
            thread.join()
        assert _post(server, body) == 200


def _post(server: Running, body: object) -> int:
    with server.http() as client:
        return client.post(COMPLETIONS, json=body).status_code


def test_while_the_model_loads_health_says_503(fake_model: Path) -> None:
    load = threading.Event()
    build = fake_core(fake_model)

    def build_late() -> EngineCore:
        assert load.wait(60)
        return build()

    with running(fake_model, build_late, wait_ready=False) as server, server.http() as client:
        for path in ("/health", "/v1/models"):
            response = client.get(path)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "not_ready"
        assert client.get("/version").status_code == 200
        assert client.get("/metrics").status_code == 200
        load.set()
        wait_until(lambda: client.get("/health").status_code == 200)
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200


def test_the_directory_name_is_accepted_as_a_model_name_but_not_listed(
    fake_server: Running, fake_model: Path
) -> None:
    with fake_server.http() as client:
        listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert listed == ["fake", "other-name"]
        for name in (*listed, fake_model.name, str(fake_model)):
            answer = client.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 1})
            assert answer.status_code == 200, answer.text
            assert client.get(f"/v1/models/{name}").json()["id"] == name


def test_in_the_hub_cache_the_repository_is_the_model_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    config = ServerConfig(served_model_names=("x",))
    model = load_served_model(write_fake_model(snapshot), config, load_tokenizer(snapshot))
    model.check_name("owner/name")
    with pytest.raises(UnknownModel):
        model.check_name("c0ffee")
