"""Pydantic AI: an agent with a tool, a stream, an object; by chat and by Responses."""

from __future__ import annotations

import asyncio
import os

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from session import CITY, KEY, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, WEATHER, get_weather, tell


class City(BaseModel):
    city: str = Field(max_length=40)


provider = os.environ["PROVIDER"]
kind = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[provider]
model = kind(MODEL, provider=OpenAIProvider(base_url=OPENAI_URL, api_key=KEY))
short = {"max_tokens": MAX_TOKENS, "temperature": 0.0}


async def session() -> dict[str, object]:
    plain = await Agent(model).run(PLAIN, model_settings=short)
    acted = await Agent(model, tools=[get_weather]).run(WEATHER, model_settings={"temperature": 0.0})
    async with Agent(model).run_stream(STORY, model_settings=short) as stream:
        streamed = "".join([piece async for piece in stream.stream_text(delta=True)])
    got = {"plain": plain.output, "after": acted.output, "streamed": streamed}
    if provider == "chat":
        formed = await Agent(model, output_type=NativeOutput(City)).run(CITY)
        got["object"] = formed.output.model_dump()
    return got


tell(**asyncio.run(session()))
