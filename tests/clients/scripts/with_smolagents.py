"""smolagents' OpenAI model: an answer, a stream, a tool."""

from __future__ import annotations

import json

from session import KEY, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, WEATHER, get_weather, tell
from smolagents import OpenAIModel, tool
from smolagents.models import ChatMessage

model = OpenAIModel(model_id=MODEL, api_base=OPENAI_URL, api_key=KEY, temperature=0, max_tokens=100)
weather = tool(get_weather)


def said(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=[{"type": "text", "text": text}])]


call = model.generate(said(WEATHER), tools_to_call_from=[weather])
for one in call.tool_calls:
    weather(**json.loads(one.function.arguments))
tell(
    plain=model.generate(said(PLAIN), max_tokens=MAX_TOKENS).content,
    streamed="".join(delta.content or "" for delta in model.generate_stream(said(STORY))),
)
