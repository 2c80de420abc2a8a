"""Mirascope: a call, a stream, a tool, an object."""

from __future__ import annotations

from mirascope import llm
from pydantic import BaseModel, Field
from session import CITY, KEY, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, WEATHER, get_weather, tell

llm.register_provider("openai", scope="openai/", base_url=OPENAI_URL, api_key=KEY)
name = f"openai/{MODEL}:completions"


class City(BaseModel):
    city: str = Field(max_length=40)


@llm.call(name, max_tokens=MAX_TOKENS, temperature=0)
def say(text: str) -> str:
    return text


@llm.call(name, tools=[llm.tool(get_weather)], temperature=0)
def act(text: str) -> str:
    return text


@llm.call(name, format=llm.format(City, mode="strict"), temperature=0)
def form(text: str) -> str:
    return text


called = act(WEATHER)
called.execute_tools()
tell(
    plain=say(PLAIN).text(),
    streamed="".join(say.stream(STORY).text_stream()),
    object=form(CITY).parse().model_dump(),
)
