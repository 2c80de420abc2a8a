"""Several conversations in one request: each is answered as in a single request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.server.in_process import CHAT, App, app_in_process
from tests.engine.server.serving import Running, wait_until

BATCH = f"{CHAT}/batch"


def conversation(text: str, system: str | None = None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


CONVERSATIONS = [
    conversation("Hello"),
    conversation("What is the weather in Rome?", "Be brief."),
    conversation("Hello"),
]
EXACT: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        yield app


def post(server: Running, path: str, **body: Any) -> dict[str, Any]:
    with server.http() as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_each_conversation_is_answered_as_in_a_single_request(demo_server: Running) -> None:
    details = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}
    whole = post(demo_server, BATCH, messages=CONVERSATIONS, **EXACT, **details)
    assert (whole["object"], whole["id"][:9]) == ("chat.completion", "chatcmpl-")
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    alone = [post(demo_server, CHAT, messages=one, **EXACT, **details) for one in CONVERSATIONS]
    for choice, one in zip(whole["choices"], alone, strict=True):
        other = one["choices"][0]
        for name in ("message", "finish_reason", "stop_reason", "token_ids"):
            assert choice[name] == other[name]
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert tokens == [entry["token"] for entry in other["logprobs"]["content"]]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert whole["usage"][name] == sum(one["usage"][name] for one in alone)


def test_all_follow_the_same_schema(demo_server: Running) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    answer = post(demo_server, BATCH, messages=CONVERSATIONS, response_format=wanted, **EXACT)
    for choice in answer["choices"]:
        assert choice["message"]["content"] in ('"yes"', '"no"')


def test_named_logprobs(demo_server: Running) -> None:
    body = {"messages": CONVERSATIONS, "logprobs": True, "logprob_token_ids": [5, 6], **EXACT}
    answer = post(demo_server, BATCH, **body)
    for choice in answer["choices"]:
        assert all(2 <= len(entry["top_logprobs"]) <= 3 for entry in choice["logprobs"]["content"])


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"best_of": 2}, "best_of"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"return_prompt_text": True}, "return_prompt_text"),
        ({"messages": []}, "messages"),
        ({"messages": conversation("x")}, "messages[0]"),
        ({"messages": [conversation("x"), []]}, "messages[1]"),
        ({"messages": [conversation("x"), [{"role": "user"}]]}, "messages[1][0]"),
        ({"messages": [conversation("x")] * 1025}, "messages"),
        ({"messages": [conversation("x"), conversation("y" * 3000)]}, "messages[1]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
    ],
)
async def test_unsupported_fields_are_refused_by_name(app: App, wrong: dict[str, Any], param: str) -> None:
    status, answer = await app.post(BATCH, **{"messages": [conversation("x")], **wrong})
    assert (status, answer["error"]["param"]) == (400, param), answer


async def test_neutral_values_are_accepted(app: App) -> None:
    app.will_say("ab")
    neutral = {"n": 1, "stream": False, "tools": None, "use_beam_search": False, "best_of": 1}
    answer = await app.ask(BATCH, messages=[conversation("x"), conversation("y")], **neutral)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["ab", "ab"]


async def test_the_maximum_is_accepted_and_one_more_is_refused(app: App) -> None:
    app.will_say("a")
    answer = await app.ask(BATCH, messages=[conversation("x")] * 1024, max_tokens=1)
    assert [choice["index"] for choice in answer["choices"]] == list(range(1024))


async def test_unknown_fields_of_messages_are_named_once(app: App) -> None:
    app.will_say("a")
    messages = [[{"role": "user", "content": "x", "mood": 1}]] * 3
    response = await app.http.post(BATCH, json={"messages": messages})
    assert response.status_code == 200
    assert response.headers["warning"].count("mood") == 1


async def test_an_abort_by_id_ends_all_of_them(app: App) -> None:
    app.will_say("a" * 1900)
    conversations = [conversation(text) for text in "xyz"]
    asked = asyncio.create_task(
        app.post(BATCH, messages=conversations, request_id="mine", max_tokens=1800, min_tokens=1800)
    )
    await asyncio.to_thread(wait_until, lambda: len(app.service.engine.request_ids) == 3)
    answer = await app.ask("/abort_requests", request_ids=["chatcmpl-mine"])
    assert answer["aborted"] == 3
    status, batch = await asked
    assert status == 200
    assert [choice["finish_reason"] for choice in batch["choices"]] == ["abort"] * 3
    assert app.service.engine.num_unfinished == 0
