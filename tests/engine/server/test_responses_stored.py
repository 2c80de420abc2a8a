"""Stored responses: referring to and listing their items, and continuing without a store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine.server.in_process import App
from tests.engine.server.responses_app import PATH, ask, calling_app, error_of, sdk


@pytest.fixture
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with calling_app(fake_model) as app:
        yield app


@pytest.fixture
def client(app: App) -> openai.AsyncOpenAI:
    return sdk(app)


async def test_sealed_reasoning_is_read_again(app: App, client: openai.AsyncOpenAI) -> None:
    app.will_say("<think>hm é</think>Yes.")
    answer = await client.responses.create(
        model="fake", input="Hi", store=False, include=["reasoning.encrypted_content"]
    )
    reasoning = answer.output[0]
    assert reasoning.type == "reasoning" and reasoning.encrypted_content
    bare: Any = {"type": "reasoning", "summary": [], "encrypted_content": reasoning.encrypted_content}
    plain: Any = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm é"}]}
    counts = [
        (
            await client.responses.input_tokens.count(
                model="fake", input=[one, {"role": "user", "content": "a"}]
            )
        )
        for one in (bare, plain)
    ]
    assert counts[0] == counts[1]
    response = await ask(app, input=[bare, {"role": "user", "content": "a"}])
    assert response.status_code == 200 and "warning" not in response.headers
    app.will_say("<think>hm é</think>Yes.")
    assert "encrypted_content" not in (await ask(app)).json()["output"][0]


async def test_input_items_are_paginated(client: openai.AsyncOpenAI) -> None:
    given: Any = [{"role": "user", "content": str(number)} for number in range(5)]
    answer = await client.responses.create(model="fake", input=given)
    pages = client.responses.input_items.list(answer.id, order="asc", limit=2)
    items = [item async for item in pages]
    texts = [item.content[0].text for item in items if item.type == "message"]  # type: ignore[union-attr]
    assert texts == ["0", "1", "2", "3", "4"]
    newest = await client.responses.input_items.list(answer.id, limit=1)
    assert newest.has_more and newest.data[0].id == items[-1].id
    following = await client.responses.create(model="fake", input="5", previous_response_id=answer.id)
    listed = (await client.responses.input_items.list(following.id, order="asc")).data
    assert [item.type for item in listed] == ["message"] * 7
    assert listed[5].id == answer.output[0].id


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")],
)
async def test_an_invalid_page_parameter_is_named(app: App, query: str, param: str) -> None:
    name = (await ask(app)).json()["id"]
    response = await app.http.get(f"{PATH}/{name}/input_items?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_input_items_of_an_unknown_response(app: App) -> None:
    assert (await app.http.get(f"{PATH}/resp_none/input_items")).status_code == 404


async def test_input_tokens_equal_the_response_usage(client: openai.AsyncOpenAI) -> None:
    given: Any = {"model": "fake", "input": "Hi", "instructions": "Be brief."}
    count = await client.responses.input_tokens.count(**given)
    answer = await client.responses.create(**given)
    assert answer.usage is not None and count.input_tokens == answer.usage.input_tokens
    assert count.object == "response.input_tokens"


async def test_a_stored_response_cannot_be_streamed(app: App, client: openai.AsyncOpenAI) -> None:
    name = (await ask(app)).json()["id"]
    answer = await client.responses.retrieve(name, include=["reasoning.encrypted_content"])
    assert answer.output_text == "Hello"
    response = await app.http.get(f"{PATH}/{name}?stream=true")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


async def test_a_conversation_that_is_too_long_is_truncated_if_requested(app: App) -> None:
    turns = [{"role": "user", "content": f"{number} " + "x" * 300} for number in range(12)]
    given = [{"role": "developer", "content": "Be brief."}, *turns]
    error = await error_of(app, input=given)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    response = await ask(app, input=given, truncation="auto", max_output_tokens=4)
    assert response.status_code == 200, response.text
    assert 1600 < response.json()["usage"]["input_tokens"] < 2000
    error = await error_of(app, input=[{"role": "user", "content": "x" * 3000}], truncation="auto")
    assert error["code"] == "context_length_exceeded"
