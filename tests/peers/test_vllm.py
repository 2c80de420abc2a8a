"""A real vLLM behind Berth: started by name or by hand, streamed from, lost, stopped to its last worker."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.berth_process import ROOT
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

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")

pytestmark = [pytest.mark.timeout(3 * START_TIMEOUT_S), needs("VLLM_PYTHON", "vLLM")]

DEMO_MODEL = str(ROOT / "models" / "berth-demo")
ENGINE_CORE = "EngineCore"  # in the title of vLLM's worker
PARAMS = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 4, "enforce_eager": True}
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; without, a CPU build takes what it finds
VLLM = {"engine": "vllm", "path": DEMO_MODEL, "params": PARAMS, "env": ENV}
CATALOG = {
    "guest": {**VLLM, "aliases": ["gpt-guest"]},
    "own": {"engine": "engine", "path": DEMO_MODEL, "params": {"dtype": "float32"}},
    "sleeper": {**VLLM, "params": {**PARAMS, "enable_sleep_mode": True}},
}
SETTINGS = {"VLLM_PYTHON": VLLM_PYTHON, "VLLM_DEFAULT_TIMEOUT": "0", "MIN_RESIDENCY": "0"}

Clients = tuple[httpx.Client, openai.OpenAI]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Clients of one Berth, so that one vLLM serves several tests."""
    with berth_with(tmp_path_factory.mktemp("vllm"), CATALOG, **SETTINGS) as berth, clients(berth) as pair:
        yield pair


def workers_of(record: dict[str, Any]) -> list[psutil.Process]:
    return [one for one in family_of(record["pid"]) if ENGINE_CORE in " ".join([one.name(), *one.cmdline()])]


def failure_told(control: httpx.Client, instance_id: str) -> dict[str, Any]:
    """Why this instance failed, as the events so far tell it."""
    with control.stream("GET", "/events", headers={"Last-Event-ID": "0"}) as events:
        for line in events.iter_lines():
            event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if event.get("instance_id") == instance_id and event.get("status") == "failed":
                error: dict[str, Any] = event["error"]
                return error
    raise AssertionError("the events have ended")


def test_a_request_by_name_starts_it_and_streams(both: Clients, note: Note) -> None:
    control, chat = both
    pieces, first_s, usage = stream(
        chat, "gpt-guest", stream_options={"include_usage": True}
    )  # an alias, to begin with
    note("vLLM, not running: first token by name after", first_s)
    record = replica_of(control, "guest")
    note("vLLM: ready after", record["load_seconds"])
    assert (record["engine"], record["status"], record["restarts"]) == ("vllm", "running", 0)
    assert len(workers_of(record)) == 1
    assert len(pieces) > 1

    _, first_s, _ = stream(chat, "guest")
    note("vLLM, running: first token by name after", first_s)
    text, plain_usage = ask(chat, "guest")
    assert text == "".join(pieces)
    assert usage == plain_usage
    assert plain_usage.completion_tokens == 16
    assert plain_usage.total_tokens == plain_usage.prompt_tokens + 16

    # The same model in the embedded engine: same template, same tokens, same greedy answer.
    own_text, own_usage = ask(chat, "own")
    assert (own_text, own_usage.prompt_tokens) == (text, plain_usage.prompt_tokens)


def test_its_memory_is_measured_with_its_workers(both: Clients) -> None:
    control, chat = both
    ask(chat, "guest")
    family = family_of(replica_of(control, "guest")["pid"])
    held = [one.memory_full_info() for one in family]
    least, most = sum(one.uss for one in held), sum(one.rss for one in held)  # without and with shared
    deadline = time.monotonic() + 60
    while (measured := control.get("/models/guest").json()["memory_bytes"] or 0) < 0.9 * least:
        assert time.monotonic() < deadline, (measured, least)
        time.sleep(0.5)
    assert measured < 1.1 * most


def test_what_vllm_refuses_comes_as_it_says(both: Clients) -> None:
    _, chat = both
    with pytest.raises(openai.BadRequestError, match="512"):
        ask(chat, "guest", tokens=5000)


def test_a_vllm_without_sleep_mode_says_so_and_goes_on(both: Clients) -> None:
    control, chat = both
    before, _ = ask(chat, "guest")
    for level in (1, 2):
        refused = control.post("/models/guest/sleep", params={"level": level})
        assert refused.status_code == 409, refused.text
        assert "--enable-sleep-mode" in refused.json()["error"]["message"]
    assert ask(chat, "guest")[0] == before


def test_it_sleeps_and_wakes_where_it_can_and_else_says_why_not(both: Clients, note: Note) -> None:
    """A CPU build refuses sleep mode at its start: that is what the asker has to be told."""
    control, chat = both
    started = control.post("/models/sleeper/start", params={"wait": START_TIMEOUT_S})
    if started.status_code != 200:
        error = started.json()["error"]
        assert "Sleep mode is not supported" in error["message"], error
        failure = control.get("/models/sleeper").json()["error"]
        assert failure["class"] == "bad_arguments", failure
        assert ask(chat, "guest")[0]  # the other one goes on
        return
    before, _ = ask(chat, "sleeper")
    for level in (1, 2):
        asleep = control.post("/models/sleeper/sleep", params={"level": level})
        assert asleep.json()["state"] == "sleeping", asleep.text
        assert replica_of(control, "sleeper")["sleep_level"] == level
        woken_at = time.perf_counter()
        assert ask(chat, "sleeper")[0] == before
        note(f"vLLM: answer from level {level} after", time.perf_counter() - woken_at)
    assert replica_of(control, "sleeper")["restarts"] == 0
    assert control.post("/models/sleeper/stop").json()["state"] == "stopped"


def test_a_dead_worker_is_noticed_and_the_next_request_brings_a_new_one(both: Clients, note: Note) -> None:
    control, chat = both
    before, _ = ask(chat, "guest")
    old = replica_of(control, "guest")
    family = family_of(old["pid"])
    (worker,) = workers_of(old)
    killed_at = time.perf_counter()
    worker.kill()
    text = None
    while text is None:
        try:
            text, _ = ask(chat, "guest")
        except openai.InternalServerError as error:  # vLLM's own last words; Berth itself has none
            assert "EngineCore encountered an issue" in str(error)
    note("vLLM: answered again after its EngineCore was killed after", time.perf_counter() - killed_at)
    assert text == before
    assert replica_of(control, "guest")["pid"] != old["pid"]
    assert [one for one in psutil.wait_procs(family, timeout=30)[1] if one.is_running()] == []
    assert "EngineDeadError" in str(failure_told(control, old["instance_id"]))


def test_deleting_it_ends_all_its_processes_and_frees_its_port(both: Clients, note: Note) -> None:
    control, chat = both
    ask(chat, "guest")
    record = replica_of(control, "guest")
    family = family_of(record["pid"])
    assert len(family) > 1
    began = time.perf_counter()
    deleted = control.delete(f"/instances/{record['instance_id']}")
    note("vLLM: deleted after", time.perf_counter() - began)
    assert deleted.status_code == 204, deleted.text
    assert_gone(family, record["port"])
    assert control.get("/models/guest").json()["state"] == "stopped"


def test_by_hand_it_is_created_lost_started_again_and_gone_with_berth(
    tmp_path_factory: pytest.TempPathFactory, note: Note
) -> None:
    with (
        berth_with(tmp_path_factory.mktemp("by-hand"), {}, **SETTINGS) as berth,
        clients(berth) as (control, _),
    ):
        body = {"model_name": DEMO_MODEL, "engine": "vllm", "name": "mine", "params": PARAMS, "env": ENV}
        created = control.post("/instances", params={"wait": START_TIMEOUT_S}, json=body)
        assert created.status_code == 201, created.text
        record = created.json()
        assert record["status"] == "running", record
        answer = control.post(
            "/proxy/mine/v1/completions", json={"prompt": "once upon a time", "max_tokens": 4}
        )
        assert answer.json()["usage"]["completion_tokens"] == 4
        family = family_of(record["pid"])
        assert len(family) > 1
        family[0].kill()  # the server; its worker must not stay behind
        assert_gone(family, record["port"])
        deadline = time.monotonic() + 30
        while (lost := control.get("/instances/mine").json())["status"] != "failed":
            assert time.monotonic() < deadline, lost
            time.sleep(0.1)
        assert lost["error"]["signal"] == "SIGKILL"

        record = control.post("/instances/mine/start", params={"wait": START_TIMEOUT_S}).json()
        assert record["status"] == "running", record
        family = family_of(record["pid"])
        assert len(family) > 1
        began = time.perf_counter()
        berth.terminate()
        assert berth.wait() == 0, berth.output()
        note("Berth with a vLLM: ended after SIGTERM after", time.perf_counter() - began)
        assert_gone(family, record["port"])
