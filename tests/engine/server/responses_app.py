"""Shared by tests of /v1/responses: a scripted app, request helpers and sample items."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.engine.server.in_process import App, app_in_process

PATH = "/v1/responses"
FUNCTION: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'


@asynccontextmanager
async def calling_app(model: Path) -> AsyncIterator[App]:
    """An app with tool and reasoning parsers; it answers Hello by default."""
    async with app_in_process(model, tool_call_parser="hermes", reasoning_parser="qwen3") as app:
        app.will_say("Hello")
        yield app


def sdk(app: App) -> openai.AsyncOpenAI:
    transport: Any = app.http  # httpx; the SDK names httpx2, whose interface is the same
    return openai.AsyncOpenAI(
        base_url="http://engine/v1", api_key="none", max_retries=0, http_client=transport
    )


async def ask(app: App, **body: Any) -> httpx.Response:
    return await app.http.post(PATH, json={"input": "Hi", **body})


async def error_of(app: App, **body: Any) -> dict[str, Any]:
    response = await ask(app, **body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def types_of(union: Any) -> Iterator[str]:
    """The values of `type` in a union of the SDK's TypedDicts."""
    for member in typing.get_args(union):
        hint = typing.get_type_hints(member).get("type")
        for literal in [hint, *typing.get_args(hint)]:
            yield from (value for value in typing.get_args(literal) if isinstance(value, str))
            if isinstance(literal, str):
                yield literal
