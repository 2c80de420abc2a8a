"""Microsoft's agent framework, whose loop calls a Python function: by Responses and by chat completions."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Annotated

from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient

asked: list[str] = []


def get_weather(city: Annotated[str, "The city"]) -> str:
    """Weather of a city"""
    asked.append(city)
    return f"12 degrees in {city}"


async def main() -> None:
    kind = {"responses": OpenAIChatClient, "chat": OpenAIChatCompletionClient}[os.environ["PROVIDER"]]
    client = kind(
        model=os.environ["MODEL"], api_key=os.environ["API_KEY"], base_url=f"{os.environ['BASE_URL']}/v1"
    )
    options = {"temperature": 0, "max_tokens": 60}
    agent = Agent(client=client, tools=[get_weather], default_options=options)
    session = agent.create_session()
    await agent.run("What is the weather in Oslo?", session=session)
    following = await agent.run("Hello", session=session)
    pieces = [update.text async for update in agent.run("What is Berth?", stream=True)]
    print(json.dumps({"asked": asked, "next": following.text, "streamed": "".join(pieces)}))


asyncio.run(main())
