"""llama-cpp-python's server as a `command`: started by name or by hand, streamed from, killed and stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    START_TIMEOUT_S,
    Note,
    ask,
    assert_gone,
    berth_with,
    clients,
    family_of,
    needs,
    replica_of,
    stream,
)

LLAMA_PYTHON = os.environ.get("LLAMA_PYTHON", "")

pytestmark = [pytest.mark.timeout(START_TIMEOUT_S), needs("LLAMA_PYTHON", "llama-cpp-python[server]")]

SETTINGS = {"VLLM_DEFAULT_TIMEOUT": "0", "MIN_RESIDENCY": "0"}

Clients = tuple[httpx.Client, openai.OpenAI]


def entry(weights: Path) -> dict[str, Any]:
    """As it stands in models.yaml; this server has no /health, but lists its models once it serves."""
    server = [LLAMA_PYTHON, "-m", "llama_cpp.server", "--host", "{host}", "--port", "{port}"]
    sizes = ["--n_ctx", "512", "--n_threads", "2"]
    return {"command": [*server, "--model", str(weights), *sizes], "health_path": "/v1/models"}


def catalog_of(weights: Path) -> dict[str, Any]:
    """It cuts a stream short when another request comes; so only one gets to it at a time."""
    one_at_a_time = {**entry(weights), "aliases": ["gpt-llama"], "concurrency_limit": 1}
    return {"llama": one_at_a_time, "no-file": entry(weights / "missing")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's, as llama.cpp reads them."""
    target = tmp_path_factory.mktemp("gguf") / "berth-demo.gguf"
    write_gguf(ROOT / "models" / "berth-demo", target)
    return target


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Clients]:
    folder = tmp_path_factory.mktemp("llama")
    with berth_with(folder, catalog_of(weights), **SETTINGS) as berth, clients(berth) as pair:
        yield pair


def test_a_request_by_name_starts_it_and_streams(both: Clients, note: Note) -> None:
    control, chat = both
    pieces, first_s, _ = stream(chat, "gpt-llama")  # an alias, to begin with
    note("llama.cpp, not running: first token by name after", first_s)
    record = replica_of(control, "llama")
    note("llama.cpp: ready after", record["load_seconds"])
    assert (record["engine"], record["status"], record["restarts"]) == ("command", "running", 0)
    assert len(pieces) > 1

    _, first_s, _ = stream(chat, "llama")
    note("llama.cpp, running: first token by name after", first_s)
    text, usage = ask(chat, "llama")
    assert text == "".join(pieces)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    # The same model in the embedded engine: same template, same tokens, same greedy answer.
    own_text, own_usage = ask(chat, "berth-demo")
    assert (text, usage.prompt_tokens) == (own_text, own_usage.prompt_tokens)


def test_streams_at_once_are_each_whole(both: Clients) -> None:
    _, chat = both
    alone, _ = ask(chat, "llama", tokens=64)
    with ThreadPoolExecutor(8) as pool:
        streams = list(pool.map(lambda _: stream(chat, "llama", tokens=64)[0], range(8)))
    assert ["".join(pieces) for pieces in streams] == [alone] * 8


def test_it_can_not_sleep_and_says_so(both: Clients) -> None:
    control, chat = both
    before, _ = ask(chat, "llama")
    refused = control.post("/models/llama/sleep", params={"level": 1})
    assert refused.status_code == 409, refused.text
    assert ask(chat, "llama")[0] == before


def test_a_start_that_fails_is_told_in_its_own_words(both: Clients) -> None:
    _, chat = both
    with pytest.raises(openai.InternalServerError, match="Model path does not exist"):
        ask(chat, "no-file")


def test_a_killed_server_is_noticed_and_the_next_request_brings_a_new_one(both: Clients) -> None:
    control, chat = both
    before, _ = ask(chat, "llama")
    old = replica_of(control, "llama")
    psutil.Process(old["pid"]).kill()
    assert ask(chat, "llama")[0] == before
    assert replica_of(control, "llama")["pid"] != old["pid"]


def test_deleting_it_ends_it_and_frees_its_port(both: Clients) -> None:
    control, chat = both
    ask(chat, "llama")
    record = replica_of(control, "llama")
    family = family_of(record["pid"])
    assert control.delete(f"/instances/{record['instance_id']}").status_code == 204
    assert_gone(family, record["port"])
    assert control.get("/models/llama").json()["state"] == "stopped"


def test_an_instance_by_hand_and_a_berth_that_ends_leave_nothing(
    tmp_path_factory: pytest.TempPathFactory, weights: Path
) -> None:
    with (
        berth_with(tmp_path_factory.mktemp("by-hand"), {}, **SETTINGS) as berth,
        clients(berth) as (control, _),
    ):
        body = {"model_name": "berth-demo", "engine": "command", "name": "mine", **entry(weights)}
        created = control.post("/instances", params={"wait": START_TIMEOUT_S}, json=body)
        assert created.status_code == 201, created.text
        record = created.json()
        assert record["status"] == "running", record
        answer = control.post(
            "/proxy/mine/v1/completions", json={"prompt": "once upon a time", "max_tokens": 4}
        )
        assert answer.json()["usage"]["completion_tokens"] == 4
        family = family_of(record["pid"])
        berth.terminate()
        assert berth.wait() == 0, berth.output()
        assert_gone(family, record["port"])
