"""The embedded engine's own Messages and Responses, and Berth's translation of its chats: the same answers.

`door` is an engine that has nothing but chats, and gets them from `story`, the embedded engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_gateway import berth_with
from tests.berth_process import free_port
from tests.chat_engine import command

pytestmark = pytest.mark.timeout(180)

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASK = "What is the weather in Oslo?"
SAY = [{"role": "user", "content": "Tell me about Berth."}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}

MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {"messages": SAY, "max_tokens": 12},
    "system": {"messages": SAY, "max_tokens": 6, "system": [{"type": "text", "text": "Be brief."}]},
    "stop": {"messages": SAY, "max_tokens": 40, "stop_sequences": ["e"]},
    "calls": {
        "messages": [{"role": "user", "content": ASK}],
        "max_tokens": 60,
        "tools": [{"name": "weather", "description": "Tells it.", "input_schema": WEATHER}],
        "tool_choice": {"type": "any"},
    },
    "results": {
        "messages": [
            {"role": "user", "content": ASK},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": "weather", "input": {"city": "Oslo"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "fog"}]},
        ],
        "max_tokens": 12,
        "tools": [{"name": "weather", "description": "Tells it.", "input_schema": WEATHER}],
    },
    "schema": {
        "messages": SAY,
        "max_tokens": 40,
        "output_config": {"format": {"type": "json_schema", "schema": CITY}},
    },
    "begun": {"messages": [*SAY, {"role": "assistant", "content": "Berth is"}], "max_tokens": 6},
}
FUNCTION = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": WEATHER}
RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {"input": "Tell me about Berth.", "max_output_tokens": 12},
    "instructions": {"input": SAY, "instructions": "Be brief.", "max_output_tokens": 6},
    "calls": {"input": ASK, "tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": 60},
    "results": {
        "input": [
            {"role": "user", "content": ASK},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city":"Oslo"}'},
            {"type": "function_call_output", "call_id": "c", "output": "fog"},
        ],
        "tools": [FUNCTION],
        "max_output_tokens": 12,
    },
    "schema": {
        "input": SAY,
        "text": {"format": {"type": "json_schema", "name": "city", "schema": CITY}},
        "max_output_tokens": 40,
    },
}
CASES = [("/v1/messages", name) for name in MESSAGES] + [("/v1/responses", name) for name in RESPONSES]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    port = free_port()
    target = ["--target", f"http://127.0.0.1:{port}", "--as", "story"]
    models = {"story": {"model": "berth-demo"}, "door": {"command": command(*target)}}
    folder: Path = tmp_path_factory.mktemp("both")
    with berth_with(folder, models, APP_PORT=str(port)) as berth, berth.client(120) as http:
        yield http


def fields_of(path: str, name: str) -> dict[str, Any]:
    fields = MESSAGES[name] if path == "/v1/messages" else RESPONSES[name]
    return {**fields, "temperature": 0}


def without_names(value: Any, names: dict[str, str]) -> Any:
    """Without ids and times, and with the same model; ids that are equal stay equal."""
    if isinstance(value, list):
        return [without_names(each, names) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {name: without_names(each, names) for name, each in value.items()}
    for name in ("id", "item_id", "call_id"):
        if isinstance(kept.get(name), str) and kept[name] != "c":
            kept[name] = names.setdefault(kept[name], f"id {len(names)}")
    kept.pop("created_at", None)
    if "model" in kept:
        kept["model"] = "any"
    for name in ("usage", "input_tokens_details"):  # what is cached differs from one request to the next
        if isinstance(kept.get(name), dict):
            kept[name] = {"output_tokens": kept[name].get("output_tokens")}
    return kept


def merged(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With consecutive deltas as one: how many tokens one brings depends on the time between them."""
    result: list[dict[str, Any]] = []
    for event in events:
        event.pop("sequence_number", None)
        last = result[-1] if result else {}
        delta = event.get("delta")
        if event["type"] == "message_delta" or {**event, "delta": 0} != {**last, "delta": 0}:
            result.append(event)
        elif isinstance(delta, str):
            last["delta"] += delta
        elif isinstance(delta, dict) and delta.keys() == last["delta"].keys():
            texts = {name: last["delta"][name] + text for name, text in delta.items() if name != "type"}
            last["delta"] |= texts
        else:
            result.append(event)
    return result


@pytest.mark.parametrize(("path", "name"), CASES)
def test_a_whole_answer_is_the_same(http: httpx.Client, path: str, name: str) -> None:
    answers = []
    for model in ("story", "door"):
        got = http.post(path, json={"model": model, **fields_of(path, name)})
        assert got.status_code == 200, got.text
        answers.append(without_names(got.json(), {}))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("path", "name"), CASES)
def test_a_stream_has_the_same_events_in_the_same_order(http: httpx.Client, path: str, name: str) -> None:
    streams = []
    for model in ("story", "door"):
        got = http.post(path, json={"model": model, "stream": True, **fields_of(path, name)})
        assert got.status_code == 200, got.text
        names: dict[str, str] = {}
        lines = [line for line in got.text.splitlines() if line.startswith("data: ")]
        events = [without_names(json.loads(line.removeprefix("data: ")), names) for line in lines]
        if path == "/v1/messages":
            events[0]["message"].pop("usage")  # chats tell the prompt's tokens at their end
        streams.append(merged(events))
    assert streams[0] == streams[1]


@pytest.mark.parametrize("name", MESSAGES)
def test_tokens_are_counted_alike(http: httpx.Client, name: str) -> None:
    fields = {
        key: value for key, value in MESSAGES[name].items() if key not in ("max_tokens", "stop_sequences")
    }
    counts = [
        http.post("/v1/messages/count_tokens", json={"model": model, **fields}).json()
        for model in ("story", "door")
    ]
    assert counts[0] == counts[1] and counts[0]["input_tokens"] > 0
