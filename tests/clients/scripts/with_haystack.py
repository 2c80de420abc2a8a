"""Haystack's OpenAI generator and embedder: an answer, a stream, a tool, an embedding."""

from __future__ import annotations

from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from session import KEY, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, VECTORS, WEATHER, get_weather, tell

common = {"api_key": Secret.from_token(KEY), "api_base_url": OPENAI_URL, "max_retries": 0}
chat = OpenAIChatGenerator(**common, model=MODEL, generation_kwargs={"temperature": 0, "max_tokens": 100})
weather = create_tool_from_function(get_weather)
streamed: list[str] = []


def say(text: str, **given: object) -> ChatMessage:
    return chat.run([ChatMessage.from_user(text)], **given)["replies"][0]


for call in say(WEATHER, tools=[weather]).tool_calls:
    weather.invoke(**call.arguments)
say(STORY, streaming_callback=lambda chunk: streamed.append(chunk.content))
embedder = OpenAITextEmbedder(**common, model=VECTORS)
tell(
    plain=say(PLAIN, generation_kwargs={"max_tokens": MAX_TOKENS}).text,
    streamed="".join(streamed),
    embedding=len(embedder.run("a ship")["embedding"]),
)
