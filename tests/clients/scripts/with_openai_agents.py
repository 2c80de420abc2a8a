"""OpenAI's agents library, whose loop calls a Python function: by Responses and by chat completions."""

from __future__ import annotations

import asyncio
import json
import os

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

asked: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """Weather of a city"""
    asked.append(city)
    return f"12 degrees in {city}"


async def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=f"{os.environ['BASE_URL']}/v1", api_key=os.environ["API_KEY"])
    kind = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}[os.environ["PROVIDER"]]
    model = kind(model=os.environ["MODEL"], openai_client=client)
    agent = Agent(
        name="weather",
        model=model,
        tools=[get_weather],
        model_settings=ModelSettings(temperature=0, max_tokens=60),
    )
    session = SQLiteSession("one")
    await Runner.run(agent, "What is the weather in Oslo?", session=session)
    following = await Runner.run(agent, "Hello", session=session)
    streaming = Runner.run_streamed(agent, "What is Berth?")
    pieces = [
        event.data.delta
        async for event in streaming.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    print(json.dumps({"asked": asked, "next": following.final_output, "streamed": "".join(pieces)}))


asyncio.run(main())
