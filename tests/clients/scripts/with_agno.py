"""Agno: an agent's answer, its stream, its tool."""

from __future__ import annotations

from agno.agent import Agent
from agno.models.openai.like import OpenAILike
from session import KEY, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, WEATHER, get_weather, tell

common = {"id": MODEL, "base_url": OPENAI_URL, "api_key": KEY, "temperature": 0}
short = OpenAILike(**common, max_tokens=MAX_TOKENS)
pieces = [event.content for event in Agent(model=short, telemetry=False).run(STORY, stream=True)]
acted = Agent(model=OpenAILike(**common, max_tokens=200), tools=[get_weather], telemetry=False).run(WEATHER)
tell(
    plain=Agent(model=short, telemetry=False).run(PLAIN).content,
    streamed="".join(piece or "" for piece in pieces),
    after=acted.content,
)
