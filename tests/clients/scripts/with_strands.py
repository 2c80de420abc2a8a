"""Strands Agents: an agent that streams, and one that runs a tool."""

from __future__ import annotations

from session import KEY, MODEL, OPENAI_URL, PLAIN, WEATHER, get_weather, tell
from strands import Agent, tool
from strands.models.openai import OpenAIModel


def model(max_tokens: int) -> OpenAIModel:
    params = {"max_tokens": max_tokens, "temperature": 0}
    return OpenAIModel(client_args={"base_url": OPENAI_URL, "api_key": KEY}, model_id=MODEL, params=params)


streamed: list[str] = []


def listen(**event: object) -> None:
    streamed.append(str(event.get("data", "")))


plain = Agent(model=model(200), callback_handler=listen)(PLAIN)
acted = Agent(model=model(200), tools=[tool(get_weather)], callback_handler=None)(WEATHER)
tell(plain=str(plain), streamed="".join(streamed), after=str(acted))
