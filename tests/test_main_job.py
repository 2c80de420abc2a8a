"""The main use on real inference: create engines, query them with the stock client, let them expire."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

pytestmark = pytest.mark.timeout(180)

PROMPT = "What is Berth?"
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    with running_berth(tmp_path_factory.mktemp("job")) as berth:
        yield berth


def create(berth: BerthProcess, name: str, **fields: Any) -> dict[str, Any]:
    body = {
        "model_name": "berth-demo",
        "name": name,
        "params": {"num_threads": 1, "max_num_seqs": 8},
        **fields,
    }
    with berth.client() as client:
        response = client.post("/instances?wait=60", json=body)
    assert response.status_code == 201, response.text
    record: dict[str, Any] = response.json()
    assert record["status"] == "running"
    return record


@pytest.fixture(scope="module")
def demo(berth: BerthProcess) -> dict[str, Any]:
    return create(berth, "demo")


def openai_client(berth: BerthProcess, instance: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{berth.url}/proxy/{instance}/v1", api_key="unused", max_retries=0)


def test_the_stock_client_completes_and_streams(berth: BerthProcess, demo: dict[str, Any]) -> None:
    with openai_client(berth, "demo") as client:
        assert [model.id for model in client.models.list()] == ["berth-demo"]
        whole = client.completions.create(
            model="berth-demo", prompt="Once upon a time", max_tokens=24, temperature=0
        )
        stream = client.completions.create(
            model="berth-demo", prompt="Once upon a time", max_tokens=24, temperature=0, stream=True
        )
        pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
    assert len(pieces) > 5
    assert "".join(pieces) == whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24


def test_the_demo_model_answers_sensibly(berth: BerthProcess, demo: dict[str, Any]) -> None:
    with openai_client(berth, "demo") as client:
        answer = client.chat.completions.create(model="berth-demo", messages=MESSAGES, temperature=0)
    text = answer.choices[0].message.content or ""
    assert "engine" in text
    assert answer.choices[0].finish_reason == "stop"


async def test_the_async_client_streams(berth: BerthProcess, demo: dict[str, Any]) -> None:
    base_url = f"{berth.url}/proxy/demo/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="berth-demo",
            messages=MESSAGES,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_a_request_during_the_start_waits_for_it(berth: BerthProcess) -> None:
    with berth.client() as client:
        created = client.post("/instances", json={"model_name": "berth-demo", "name": "early"})
        assert created.json()["status"] == "starting"
    with openai_client(berth, "early") as client:
        answer = client.completions.create(model="berth-demo", prompt="Berth is", max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    with berth.client() as client:
        client.delete("/instances/early")


def test_two_engines_and_the_death_of_one(berth: BerthProcess, demo: dict[str, Any]) -> None:
    doomed = create(berth, "doomed")
    usages: list[Any] = []
    streaming = threading.Event()

    def stream_from_the_other() -> None:
        with openai_client(berth, "demo") as client:
            stream = client.completions.create(
                model="berth-demo",
                prompt="Once",
                max_tokens=300,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            for chunk in stream:
                usages.append(chunk.usage)
                streaming.set()

    other = threading.Thread(target=stream_from_the_other)
    other.start()
    assert streaming.wait(30)
    with openai_client(berth, "doomed") as sdk:
        stream = sdk.completions.create(
            model="berth-demo", prompt="Once", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        killed = time.monotonic()
        psutil.Process(doomed["pid"]).kill()
        with pytest.raises((openai.APIError, httpx.RemoteProtocolError)):
            for _ in stream:
                pass
    with berth.client() as client:
        while (record := client.get("/instances/doomed").json())["status"] != "failed":
            assert time.monotonic() - killed < 1.0, record
        assert record["error"]["class"] == "crashed"
        assert record["error"]["signal"] == "SIGKILL"
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", doomed["port"]))
        other.join(60)
        assert usages[-1] is not None
        assert usages[-1].completion_tokens == 300
        assert client.get("/instances/demo").json()["status"] == "running"
        client.delete("/instances/doomed")


def test_an_idle_model_expires(berth: BerthProcess) -> None:
    create(berth, "brief", timeout=1.5)
    with berth.client() as client, client.stream("GET", "/events", headers={"Last-Event-ID": "0"}) as events:
        for line in events.iter_lines():
            if line.startswith("data: ") and '"brief"' in line and '"stopped"' in line:
                break
        record = client.get("/instances/brief").json()
    assert record["status"] == "stopped"
    assert "idle" in record["status_reason"]


def test_a_long_stream_does_not_count_as_idle(berth: BerthProcess) -> None:
    with berth.client() as client:
        body = {
            "model_name": "fake", "engine": "command", "name": "long", "timeout": 0.5,
            "command": command("--chunk-delay", "0.05"),
        }  # fmt: skip
        client.post("/instances?wait=30", json=body)
    with openai_client(berth, "long") as client:
        stream = client.completions.create(model="fake", prompt="x", max_tokens=30, stream=True)
        assert len([chunk for chunk in stream if chunk.choices]) == 30


def test_a_stop_under_load_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM with streams in flight, on an engine that ignores SIGTERM and has a child that does so too."""
    with running_berth(tmp_path, DRAIN_TIMEOUT="1", STOP_GRACE="1") as berth:
        stubborn = {
            "model_name": "fake", "engine": "command", "name": "stubborn",
            "command": command("--ignore-term", "--grandchild", "--chunk-delay", "0.05"),
        }  # fmt: skip
        with berth.client() as client:
            assert client.post("/instances?wait=30", json=stubborn).json()["status"] == "running"
        create(berth, "real")
        assert len(berth.survivors()) >= 3
        streams = [
            threading.Thread(target=_stream_until_cut, args=(berth, name)) for name in ("stubborn", "real")
        ]
        for stream in streams:
            stream.start()
        with berth.client() as client:
            while sum(record["in_flight"] for record in client.get("/instances").json()["data"]) < 2:
                time.sleep(0.01)
        asked = time.monotonic()
        berth.terminate()
        assert berth.wait() == 0, berth.output()
        assert time.monotonic() - asked < 15
        assert berth.survivors() == []
        for stream in streams:
            stream.join(10)
            assert not stream.is_alive()


def _stream_until_cut(berth: BerthProcess, instance: str) -> None:
    with openai_client(berth, instance) as client:
        try:
            model = "fake" if instance == "stubborn" else "berth-demo"
            body = {"ignore_eos": True}
            stream = client.completions.create(
                model=model, prompt="x", max_tokens=1500, stream=True, extra_body=body
            )
            for _ in stream:
                pass
        except (openai.APIError, httpx.HTTPError):
            pass
