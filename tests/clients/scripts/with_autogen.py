"""AutoGen's OpenAI client: an answer, a stream, a tool."""

from __future__ import annotations

import asyncio
import json

from autogen_core.models import UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from session import KEY, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, WEATHER, get_weather, tell

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
}


def said(text: str) -> list[UserMessage]:
    return [UserMessage(content=text, source="user")]


async def session() -> dict[str, object]:
    client = OpenAIChatCompletionClient(
        model=MODEL, base_url=OPENAI_URL, api_key=KEY, model_info=INFO, temperature=0, max_tokens=200
    )
    short = {"max_tokens": MAX_TOKENS}
    plain = await client.create(said(PLAIN), extra_create_args=short)
    pieces = [part async for part in client.create_stream(said(STORY), extra_create_args=short)]
    call = await client.create(
        said(WEATHER), tools=[FunctionTool(get_weather, description="Weather of a city")]
    )
    for one in call.content:
        get_weather(**json.loads(one.arguments))
    await client.close()
    return {"plain": plain.content, "streamed": "".join(part for part in pieces if isinstance(part, str))}


tell(**asyncio.run(session()))
