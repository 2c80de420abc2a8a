"""A Berth with somebody else's engine: what the tests of all of them need."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.berth_process import BerthProcess, running_berth

START_TIMEOUT_S = 300.0
GONE_TIMEOUT_S = 30.0
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tell me a story about a fox"}]

Note = Callable[[str, float], None]


def needs(variable: str, package: str) -> pytest.MarkDecorator:
    """Skips a test where this environment variable doesn't name a Python that has the package."""
    python = os.environ.get(variable, "")
    if python and shutil.which(python) is None:
        raise pytest.UsageError(f"{variable}={python}: no such program")
    reason = f"{variable} is not set: name the Python of an environment with {package}"
    return pytest.mark.skipif(not python, reason=reason)


@contextmanager
def berth_with(folder: Path, models: dict[str, Any], **settings: str) -> Iterator[BerthProcess]:
    """A Berth with this catalog; at its end nothing it started may be left."""
    catalog = folder / "models.yaml"
    catalog.write_text(json.dumps({"models": models}))  # JSON is YAML
    settings = {"MODELS_FILE": str(catalog), "STATE_DIR": str(folder / "state"), **settings}
    with running_berth(folder, **settings) as berth:
        yield berth


@contextmanager
def clients(berth: BerthProcess) -> Iterator[tuple[httpx.Client, openai.OpenAI]]:
    """One for Berth's own routes, and one as a user would write it."""
    with (
        berth.client(timeout_s=START_TIMEOUT_S) as control,
        httpx2.Client(trust_env=False) as transport,
        openai.OpenAI(
            base_url=f"{berth.url}/v1",
            api_key="unused",
            http_client=transport,
            timeout=START_TIMEOUT_S,
            max_retries=0,
        ) as chat,
    ):
        yield control, chat


def ask(client: openai.OpenAI, model: str, tokens: int = 16) -> tuple[str, openai.types.CompletionUsage]:
    """A greedy answer in one piece, and what it cost."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=tokens, temperature=0)
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage


def stream(
    client: openai.OpenAI, model: str, tokens: int = 16, **fields: Any
) -> tuple[list[str], float, Any]:
    """The pieces of a greedy answer, seconds until the first of them, and the usage if it was told."""
    started = time.perf_counter()
    first, pieces, usage = 0.0, [], None
    for chunk in client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=tokens, temperature=0, stream=True, **fields
    ):
        usage = getattr(chunk, "usage", None) or usage
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - started
            pieces.append(chunk.choices[0].delta.content)
    return pieces, first, usage


def replica_of(client: httpx.Client, model: str) -> dict[str, Any]:
    """The record of the model's only live instance."""
    (found,) = [record for record in client.get("/instances").json()["data"] if record["profile"] == model]
    record: dict[str, Any] = found
    return record


def family_of(pid: int) -> list[psutil.Process]:
    """A process with all that stem from it."""
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def assert_gone(family: list[psutil.Process], port: int) -> None:
    """None of these processes is left within GONE_TIMEOUT_S, and the port is free."""
    _, alive = psutil.wait_procs(family, timeout=GONE_TIMEOUT_S)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
