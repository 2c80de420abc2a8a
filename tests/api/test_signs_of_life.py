"""What streams of each dialect get while their model loads, as real clients read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from api.gateway.signs_of_life import SignOfLife, sign_of_life
from api.http.headers import TRANSLATED
from api.http.response_channel import as_translated
from instance_manager.backends.load_signs import ANY_ENGINE, LoadProgress, read_progress
from tests.api.test_gateway import berth_with
from tests.berth_process import BerthProcess
from tests.chat_engine import command

NAMES = ("messages", "responses", "native", "chat", "comments", "broken")


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    models = {name: {"command": command("--load-s", "1.6")} for name in NAMES}
    models["native"] = {"command": command("--load-s", "1.6", "--path", "/v1/responses", "--says", NATIVE)}
    models["broken"] = {"command": command("--load-s", "1.6", "--exit")}
    settings = {"STREAM_KEEPALIVE": "0.2", "LOADING_TEXT": "true", "VLLM_MAX_INSTANCES": "6"}
    with berth_with(tmp_path_factory.mktemp("signs"), models, **settings) as berth:
        yield berth


def event(kind: str, number: int, **fields: Any) -> str:
    data = json.dumps({"type": kind, "sequence_number": number, **fields})
    return f"event: {kind}\ndata: {data}\n\n"


ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": []}
NATIVE = "".join(
    [
        event("response.created", 0, response={"id": "resp_engine", "output": [], "status": "in_progress"}),
        event(
            "response.in_progress", 1, response={"id": "resp_engine", "output": [], "status": "in_progress"}
        ),
        event("response.output_item.added", 2, output_index=0, item=ITEM),
        event("response.output_item.done", 3, output_index=0, item=ITEM),
        event(
            "response.completed", 4, response={"id": "resp_engine", "output": [ITEM], "status": "completed"}
        ),
    ]
)


@pytest.fixture(scope="module")
def streams(berth: BerthProcess) -> dict[str, str]:
    """What each stream brought; all models load at the same time."""
    say = [{"role": "user", "content": "Hello there"}]
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "messages": ("/v1/messages", {"messages": say, "max_tokens": 9}),
        "responses": ("/v1/responses", {"input": "Hello there", "store": False}),
        "native": ("/v1/responses", {"input": "Hello there", "store": False}),
        "chat": ("/v1/chat/completions", {"messages": say}),
        "comments": ("/v1/responses", {"input": "Hello there"}),
        "broken": ("/v1/responses", {"input": "Hello there", "store": False}),
    }

    def ask(name: str) -> str:
        path, fields = asked[name]
        with berth.client() as http:
            got = http.post(path, json={"model": name, "stream": True, **fields})
        assert got.status_code == 200
        return got.text

    with ThreadPoolExecutor(len(NAMES)) as pool:
        return dict(zip(NAMES, pool.map(ask, NAMES), strict=True))


def data_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_messages_get_pings_before_the_message(streams: dict[str, str]) -> None:
    kinds = [each["type"] for each in data_of(streams["messages"])]
    start = kinds.index("message_start")
    assert start >= 2 and set(kinds[:start]) == {"ping"}
    assert streams["messages"].startswith("event: ping\n") and kinds[-1] == "message_stop"


@pytest.mark.parametrize("name", ["responses", "native"])
def test_responses_are_created_and_in_progress_under_one_id(streams: dict[str, str], name: str) -> None:
    events = data_of(streams[name])
    kinds = [each["type"] for each in events]
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert kinds.count("response.created") == 1 and kinds[0] == "response.created"
    assert kinds.count("response.in_progress") >= 3 and kinds[-1] == "response.completed"
    assert kinds.index("response.output_item.added") == 1 + kinds.count("response.in_progress")
    assert len({each["response"]["id"] for each in events if "response" in each}) == 1
    loading = [(each.get("response") or {}).get("metadata") for each in events]
    assert any(each and each.get("loading", "").startswith("weights, ") for each in loading)


def test_a_stored_response_gets_comments_as_only_its_engine_knows_its_id(streams: dict[str, str]) -> None:
    assert streams["comments"].startswith(": waiting for the model")
    assert ": waiting for the model (weights, " in streams["comments"]
    assert data_of(streams["comments"])[0]["type"] == "response.created"


def test_a_chat_gets_empty_chunks_and_tells_how_far_the_start_is(streams: dict[str, str]) -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in data_of(streams["chat"]) if chunk["choices"]]
    told = [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta]
    assert told[0].startswith("Loading chat …") and any("weights, 40 %" in text for text in told)
    assert {} in deltas[: len(deltas) - 4]
    assert "".join(delta.get("content") or "" for delta in deltas) == " Hello there"


def test_a_failed_start_is_an_event_of_the_dialect(streams: dict[str, str]) -> None:
    last = data_of(streams["broken"])[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "broken" in last["response"]["error"]["message"]


def test_the_sdks_read_these_streams(berth: BerthProcess, streams: dict[str, str]) -> None:
    """They are loaded by now, so what they got while loading is served to them again."""

    def served(text: str) -> Any:
        headers = {"content-type": "text/event-stream"}
        return httpx2.Client(
            transport=httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, text=text))
        )

    with (
        anthropic.Anthropic(api_key="k", http_client=served(streams["messages"])) as one,
        one.messages.stream(model="m", max_tokens=9, messages=[]) as message,
    ):
        assert message.get_final_text() == " Hello there"
    for name in ("responses", "native"):
        with (
            openai.OpenAI(api_key="k", http_client=served(streams[name])) as other,
            other.responses.stream(model="m", input="a") as events,
        ):
            assert events.get_final_response().status == "completed"
    with (
        openai.OpenAI(api_key="k", http_client=served(streams["chat"])) as third,
        third.chat.completions.stream(model="m", messages=[]) as chunks,
    ):
        assert chunks.get_final_completion().choices[0].message.content == " Hello there"


def test_an_instance_tells_how_far_its_start_is(berth: BerthProcess) -> None:
    with berth.client() as http:
        record = http.get("/instances").json()["data"][0]
    assert (record["load_phase"], record["load_progress"]) == (None, None)


# Pure.


def test_the_request_of_an_adapter_gets_comments() -> None:
    here = as_translated({"type": "http", "headers": []})
    at_another_node = {"type": "http", "headers": [(TRANSLATED, b"1")]}
    for scope in (here, at_another_node):
        sign = sign_of_life(scope, "/v1/chat/completions", {}, "r", has_text=True)
        assert type(sign) is SignOfLife
    assert sign.write(LoadProgress("weights", 0.4)) == b": waiting for the model (weights, 40 %)\n\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Loading safetensors checkpoint shards:  40% Completed | 2/5 [00:01<00:02]", ("weights", 0.4)),
        (
            "\rLoading safetensors checkpoint shards:   0%|\rLoading safetensors checkpoint shards:  75%|",
            ("weights", 0.75),
        ),
        ("Fetching 12 files:  50%|#####     | 6/12", ("download", 0.5)),
        ("INFO 11-30 [gpu_model_runner.py:4000] Starting to load model org/m...", ("weights", None)),
        ("Capturing CUDA graphs (decode, FULL):  20%|##", ("warm-up", 0.2)),
        ("load_tensors: loading model tensors, this can take a while...", ("weights", None)),
        ("common_init_from_params: warming up the model with an empty run", ("warm-up", None)),
        ("2026-11-30 08:00:00 INFO engine: Listening on 127.0.0.1, port 1.", ("weights", None)),
        ("listening", None),
    ],
)
def test_signs_in_engines_logs(line: str, expected: tuple[str, float | None] | None) -> None:
    progress = read_progress(["something else", line, ""], ANY_ENGINE)
    assert (progress and (progress.phase, progress.fraction)) == expected
