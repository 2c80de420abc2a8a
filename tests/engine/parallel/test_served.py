"""A served model on two ranks, as a process: the same answers as on one, and one end for both."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine.config import EngineConfig
from engine.execution.build import build_core
from engine.text.tokenizer import load_tokenizer
from tests.engine.offline.lora_files import write_adapter
from tests.engine.server.serving import WAIT_S, Running, running, wait_until
from tests.engine.server.test_sleeping_memory import complete, held, sleeper

pytestmark = pytest.mark.timeout(180)

NUM_BLOCKS = 24  # of 16 tokens: few, so that requests side by side are preempted
PROMPTS = ["abc" * n for n in (1, 5, 20, 40)]


@dataclass
class Divided:
    process: psutil.Process
    client: httpx.Client
    log: Path

    @property
    def rank_1(self) -> psutil.Process:
        return rank_1_of(self.process)


def rank_1_of(process: psutil.Process) -> psutil.Process:
    (rank_1,) = (child for child in process.children() if "parallel.worker" in " ".join(child.cmdline()))
    return rank_1


@pytest.fixture(scope="module")
def divided(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Divided]:
    log = tmp_path_factory.mktemp("ranks") / "log"
    words = ["--dtype", "float32", "--max-model-len", "200", "-tp", "2", "--served-model-name", "fake"]
    words += ["--enable-lora"]
    with sleeper(tiny_model, log, *words, "--num-gpu-blocks-override", str(NUM_BLOCKS)) as (process, client):
        yield Divided(process, client, log)


@pytest.fixture(scope="module")
def whole(tiny_model: Path) -> Iterator[Running]:
    config = EngineConfig(
        model=tiny_model, dtype="float32", device="cpu", max_model_len=200, num_threads=1, enable_lora=True
    )
    ends = load_tokenizer(tiny_model).end_token_ids
    with running(tiny_model, lambda: build_core(config, eos_token_ids=ends)) as server:
        yield server


def texts(client: httpx.Client, prompts: list[str], max_tokens: int) -> list[str]:
    """Of prompts that run side by side."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: complete(client, prompt, max_tokens), prompts))
    return [answer["choices"][0]["text"] for answer in answers]


def test_greedy_answers_are_those_of_one_rank(divided: Divided, whole: Running) -> None:
    with whole.http() as client:
        expected = texts(client, PROMPTS, 40)
    assert len(set(expected)) == len(PROMPTS)
    assert texts(divided.client, PROMPTS, 40) == expected


def test_preempted_requests_have_the_same_answers(divided: Divided, whole: Running) -> None:
    prompts = [f"{n}" * 30 for n in range(6)]  # 6 * 90 tokens, in 24 * 16
    with whole.http() as client:
        expected = texts(client, prompts, 60)
    assert texts(divided.client, prompts, 60) == expected
    metrics = divided.client.get("/metrics").text
    preempted = next(line for line in metrics.splitlines() if line.startswith("vllm:num_preemptions_total"))
    assert float(preempted.rsplit(" ", 1)[1]) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 3},
        {"prompt_logprobs": 2, "max_tokens": 1},
        {"seed": 5, "temperature": 1.0, "top_p": 0.9},
        {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}, "ignore_eos": False},
        {"presence_penalty": 1.5, "n": 1, "stop": ["z"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_requests_of_every_kind_have_the_same_answers(
    options: dict[str, Any], divided: Divided, whole: Running
) -> None:
    body = {"prompt": "abcabc", "max_tokens": 12, "temperature": 0, "ignore_eos": True, **options}
    with whole.http() as client:
        expected = client.post("/v1/completions", json=body).json()
    answer = divided.client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == expected["choices"][0]["text"]
    assert rounded(answer["choices"]) == rounded(expected["choices"])


def rounded(value: Any) -> Any:
    """Logprobs differ in their last digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def test_prefixes_are_cached_on_all_ranks(divided: Divided) -> None:
    prompt = "xyz" * 16
    first, again = complete(divided.client, prompt), complete(divided.client, prompt)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    assert again["choices"][0]["text"] == first["choices"][0]["text"]


def test_adapters_are_loaded_and_unloaded_on_all_ranks(
    divided: Divided, whole: Running, tiny_model: Path, tmp_path: Path
) -> None:
    good, broken = write_adapter(tiny_model, tmp_path / "good"), write_adapter(tiny_model, tmp_path / "bad")
    (broken / "adapter_model.safetensors").write_bytes(b"?")
    body = {
        "model": "good",
        "prompt": "abcabc",
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "n": 2,
    }
    texts = []
    with whole.http() as client:
        for one in (client, divided.client):
            load = {"lora_name": "good", "lora_path": str(good)}
            assert one.post("/v1/load_lora_adapter", json=load).status_code == 200
            answers = [one.post("/v1/completions", json=body | {"model": m}).json() for m in ("good", "fake")]
            texts.append([[choice["text"] for choice in answer["choices"]] for answer in answers])
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]
    load = {"lora_name": "broken", "lora_path": str(broken)}
    assert divided.client.post("/v1/load_lora_adapter", json=load).status_code == 400
    assert divided.client.post("/v1/unload_lora_adapter", json={"lora_name": "good"}).status_code == 200
    for name in ("good", "broken"):
        assert divided.client.post("/v1/completions", json=body | {"model": name}).status_code == 404
    assert divided.client.post("/v1/completions", json=body | {"model": "fake"}).status_code == 200


def test_a_client_that_leaves_ends_its_request_only(divided: Divided) -> None:
    body = {"prompt": "abc", "max_tokens": 150, "ignore_eos": True, "temperature": 0, "stream": True}
    expected = texts(divided.client, ["later"], 10)
    with divided.client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
    assert texts(divided.client, ["later"], 10) == expected


@pytest.mark.parametrize("level", [1, 2])
def test_all_ranks_sleep_and_wake_up(level: int, divided: Divided) -> None:
    expected, awake = texts(divided.client, ["sleepy"], 10), held(divided.client)
    assert awake["weights"] > 0
    assert divided.client.post(f"/sleep?level={level}").status_code == 200
    asleep = held(divided.client)
    assert (asleep["kv_cache"], asleep["weights"]) == (0, awake["weights"] if level == 1 else 0)
    assert divided.client.post("/wake_up").status_code == 200
    assert held(divided.client) == awake
    assert texts(divided.client, ["sleepy"], 10) == expected


def test_the_ranks_are_one_group_and_share_no_core(divided: Divided) -> None:
    rank_1 = divided.rank_1
    assert os.getpgid(rank_1.pid) == os.getpgid(divided.process.pid)
    assert os.getsid(rank_1.pid) == os.getsid(divided.process.pid)
    if len(os.sched_getaffinity(0)) > 1:
        assert len(rank_1.cpu_affinity()) < len(divided.process.cpu_affinity())


def test_a_signal_to_the_group_lets_rank_0_finish_its_requests(divided: Divided) -> None:
    """Rank 1 ignores it: it ends with rank 0."""
    divided.rank_1.send_signal(signal.SIGTERM)
    divided.rank_1.send_signal(signal.SIGINT)
    assert texts(divided.client, ["still here"], 5)


def test_a_rank_that_dies_while_idle_ends_the_engine_at_once_with_the_reason(divided: Divided) -> None:
    """The last test of this server."""
    divided.rank_1.kill()
    divided.process.wait(WAIT_S)
    assert "Rank 1 of 2 was ended by SIGKILL" in divided.log.read_text()


def test_no_rank_survives_rank_0(tiny_model: Path, tmp_path: Path) -> None:
    with sleeper(tiny_model, tmp_path / "log", "-tp", "2", "--num-gpu-blocks-override", "32") as (process, _):
        rank_1 = rank_1_of(process)
        process.kill()
        rank_1.wait(WAIT_S)
    wait_until(lambda: not rank_1.is_running())
