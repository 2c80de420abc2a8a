"""A real llama-server behind Berth, as `engine: llama`: started, evicted, expired, killed, adopted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.berth_process import ROOT
from tests.peers.gguf import write_gguf
from tests.peers.guests import (
    QUESTION,
    START_TIMEOUT_S,
    Note,
    ask,
    assert_gone,
    berth_with,
    clients,
    family_of,
    replica_of,
    stream,
)
from tests.successive_berths import Berths, kill

LLAMA_SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server") or ""

pytestmark = [
    pytest.mark.timeout(START_TIMEOUT_S),
    pytest.mark.skipif(
        not LLAMA_SERVER, reason="LLAMA_SERVER is not set: name a llama-server, or a Python with xllamacpp"
    ),
]

PARAMS = {"threads": 1, "reasoning": "off"}  # it would let the model think first
MIB = 1 << 20

Clients = tuple[httpx.Client, openai.OpenAI]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: the demo model as llama.cpp reads it, another one, and files that are none."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("fox", "hare"):
        (folder / name).mkdir()
        write_gguf(ROOT / "models" / "berth-demo", folder / name / f"{name}-F32.gguf")
    weights = (folder / "fox" / "fox-F32.gguf").read_bytes()
    (folder / "cut").mkdir()
    (folder / "cut" / "cut-F32.gguf").write_bytes(weights[: len(weights) // 2])
    (folder / "text").mkdir()
    (folder / "text" / "text-F32.gguf").write_bytes(b"hello world")
    return folder


def settings(models: Path, **more: str) -> dict[str, str]:
    return {
        "LLAMA_SERVER": LLAMA_SERVER,
        "MODEL_DIRS": f"{models}:{ROOT / 'models'}",
        "HF_HUB_CACHE": str(models / "cache"),
        "VLLM_DEFAULT_TIMEOUT": "0",
        "MIN_RESIDENCY": "0",
        **more,
    }


def entry(models: Path, name: str, **fields: Any) -> dict[str, Any]:
    return {"path": str(models / name / f"{name}-F32.gguf"), "params": PARAMS, **fields}


def catalog(models: Path) -> dict[str, Any]:
    return {
        "fox": entry(models, "fox", aliases=["gpt-fox"]),
        "hare": entry(models, "hare", max_model_len=512),
        "one-at-a-time": entry(models, "fox", concurrency_limit=1),
        "embeds": entry(models, "fox", params={**PARAMS, "runner": "pooling"}),
        "cut": entry(models, "cut"),
        "text": entry(models, "text"),
        "wrong-flag": entry(models, "fox", params={"n_gpu_layer": 1}),
        "more-flags": entry(models, "fox", params={**PARAMS, "cache_type_k": "q8_0", "flash_attn": True}),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Clients]:
    folder = tmp_path_factory.mktemp("llama")
    with berth_with(folder, catalog(models), **settings(models)) as berth, clients(berth) as pair:
        yield pair


def eventually(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_request_by_name_starts_it_and_streams(both: Clients, note: Note) -> None:
    control, chat = both
    pieces, first_s, usage = stream(chat, "gpt-fox", stream_options={"include_usage": True})
    note("llama-server, not running: first token by name after", first_s)
    record = replica_of(control, "fox")
    note("llama-server: ready after", record["load_seconds"])
    assert (record["engine"], record["status"], record["restarts"]) == ("llama", "running", 0)
    assert record["engine_reason"].startswith("GGUF files, and llama-server was found: ")
    assert len(pieces) > 1 and usage.completion_tokens == 16

    _, first_s, _ = stream(chat, "fox")
    note("llama-server, running: first token by name after", first_s)
    assert ask(chat, "fox")[0] == "".join(pieces)
    # The same model in the embedded engine: same template, same tokens, same greedy answer.
    own_text, own_usage = ask(chat, "berth-demo")
    text, usage = ask(chat, "fox")
    assert (text, usage.prompt_tokens) == (own_text, own_usage.prompt_tokens)


def test_it_answers_by_schema_and_with_tools(both: Clients) -> None:
    _, chat = both
    schema = {
        "type": "object",
        "properties": {"animal": {"type": "string", "enum": ["fox", "hare"]}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    answer = chat.chat.completions.create(
        model="fox",
        messages=QUESTION,
        max_tokens=64,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "")["animal"] in ("fox", "hare")
    called = chat.chat.completions.create(
        model="fox",
        messages=QUESTION,
        max_tokens=16,
        temperature=0,
        tools=[{"type": "function", "function": {"name": "tell", "parameters": schema}}],
    )
    assert called.choices[0].finish_reason in ("length", "stop", "tool_calls")  # a tiny model calls none


def test_it_embeds_where_the_entry_says_so(both: Clients) -> None:
    control, chat = both
    vectors = chat.embeddings.create(model="embeds", input=["a fox", "a hare"], encoding_format="float").data
    assert [len(one.embedding) for one in vectors] == [192, 192]
    assert "--embeddings" in replica_of(control, "embeds")["command"]
    with pytest.raises(openai.NotFoundError, match="needs an engine that generates text"):
        ask(chat, "embeds")


def test_its_own_routes_metrics_and_slots(both: Clients) -> None:
    control, chat = both
    ask(chat, "fox")
    record = replica_of(control, "fox")
    proxy = f"/proxy/{record['instance_id']}"
    assert control.post(f"{proxy}/completion", json={"prompt": "once", "n_predict": 2}).json()["content"]
    assert control.post(f"{proxy}/tokenize", json={"content": "once upon"}).json()["tokens"]
    assert control.get(f"{proxy}/props").json()["model_alias"] == "fox"
    assert len(control.get(f"{proxy}/slots").json()) == 4
    assert (
        "llamacpp:tokens_predicted_total" in control.get(f"/metrics/instances/{record['instance_id']}").text
    )
    refused = httpx.get(f"http://127.0.0.1:{record['port']}/v1/models", trust_env=False)
    assert refused.status_code in (401, 200)  # newer servers list their models to anyone
    body = {"prompt": "once", "n_predict": 2}
    refused = httpx.post(f"http://127.0.0.1:{record['port']}/completion", json=body, trust_env=False)
    assert refused.status_code == 401


def test_streams_at_once_are_each_whole(both: Clients) -> None:
    _, chat = both
    alone, _ = ask(chat, "fox", tokens=32)
    with ThreadPoolExecutor(8) as pool:
        streams = list(pool.map(lambda _: stream(chat, "fox", tokens=32)[0], range(8)))
    assert all("".join(pieces).startswith(alone[:10]) for pieces in streams)


def test_streams_in_a_queue_are_each_whole(both: Clients) -> None:
    """Each begins as the one before it ends, when the server closes that one's connection."""
    _, chat = both
    with ThreadPoolExecutor(4) as pool:
        streams = list(pool.map(lambda _: stream(chat, "one-at-a-time", tokens=4)[0], range(40)))
    assert len({"".join(pieces) for pieces in streams}) == 1


@pytest.mark.parametrize(("name", "reason"), [("cut", "not within the file bounds"), ("text", "GGUF")])
def test_a_broken_file_is_told_in_its_own_words(both: Clients, name: str, reason: str) -> None:
    _, chat = both
    with pytest.raises(openai.APIStatusError, match=reason):
        ask(chat, name)


def test_a_wrong_flag_is_refused_before_a_start(both: Clients) -> None:
    control, chat = both
    assert "did you mean" in control.get("/models/wrong-flag").json()["problem"]
    with pytest.raises(openai.APIStatusError, match="llama-server has no such flag"):
        ask(chat, "wrong-flag")
    assert control.get("/models/wrong-flag").json()["replicas"] == []
    assert ask(chat, "more-flags")[0]


def test_a_killed_server_is_noticed_and_the_next_request_brings_a_new_one(both: Clients) -> None:
    control, chat = both
    before, _ = ask(chat, "fox")
    old = replica_of(control, "fox")
    psutil.Process(old["pid"]).kill()
    assert ask(chat, "fox")[0] == before
    assert replica_of(control, "fox")["pid"] != old["pid"]


def test_deleting_it_ends_it_and_frees_its_port(both: Clients) -> None:
    control, chat = both
    ask(chat, "fox")
    record = replica_of(control, "fox")
    family = family_of(record["pid"])
    assert control.delete(f"/instances/{record['instance_id']}").status_code == 204
    assert_gone(family, record["port"])


def test_an_idle_server_expires_and_comes_back(tmp_path: Path, models: Path) -> None:
    only = {"fox": entry(models, "fox", timeout=1)}
    with berth_with(tmp_path, only, **settings(models)) as berth, clients(berth) as (control, chat):
        before, _ = ask(chat, "fox")
        family = family_of(replica_of(control, "fox")["pid"])
        eventually(lambda: control.get("/models/fox").json()["state"] == "stopped")
        assert [one for one in family if one.is_running() and one.status() != "zombie"] == []
        assert ask(chat, "fox")[0] == before


def test_two_models_in_memory_for_one_take_turns(tmp_path: Path, models: Path) -> None:
    """Each start evicts the other model; none of the answers is lost or the other one's."""
    share = 450 * MIB / psutil.virtual_memory().total
    large = {**PARAMS, "ctx_size": 131072}  # whose cache takes 224 MiB
    two = {name: entry(models, name, params=large) for name in ("fox", "hare")}
    more = {"HOST_MEMORY": f"{share:.6f}"}
    with berth_with(tmp_path, two, **settings(models, **more)) as berth, clients(berth) as (control, chat):
        before = {name: ask(chat, name)[0] for name in two}
        for name in ("fox", "hare", "fox"):
            assert ask(chat, name)[0] == before[name]
            others = [one for one in control.get("/instances").json()["data"] if one["profile"] != name]
            assert others == []


def test_the_next_berth_adopts_it(tmp_path: Path, models: Path) -> None:
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"fox": entry(models, "fox")}}))
    berths = Berths(tmp_path)
    more = settings(models, MODELS_FILE=str(tmp_path / "models.yaml"))
    try:
        first = berths.begin(**more)
        with clients(first) as (control, chat):
            before, _ = ask(chat, "fox")
            old = replica_of(control, "fox")
        kill(first)
        second = berths.begin(**more)
        with clients(second) as (control, chat):
            eventually(lambda: replica_of(control, "fox")["status"] == "running")
            assert ask(chat, "fox")[0] == before
            adopted = replica_of(control, "fox")
            assert (adopted["pid"], adopted["restarts"]) == (old["pid"], 0)
            assert adopted["engine_reason"] == old["engine_reason"]
            family = family_of(adopted["pid"])
            os.kill(second.pid, signal.SIGTERM)
            assert second.wait() == 0, second.output()
            assert_gone(family, adopted["port"])
    finally:
        berths.close()
