"""LiteLLM's providers for Ollama: `ollama_chat` (/api/chat), `ollama` (/api/generate, embeddings)."""

from __future__ import annotations

import json
import os

import litellm

provider = os.environ["PROVIDER"]
common = {
    "model": f"{provider}/{os.environ['MODEL']}",
    "api_base": os.environ["BASE_URL"],
    "api_key": os.environ["API_KEY"],
}
bearer = {"Authorization": f"Bearer {os.environ['API_KEY']}"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS},
}
PLACE = PARAMETERS | {"properties": {"city": {"enum": ["Oslo", "Bergen"]}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
common["extra_headers"] = bearer
messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
asked, following = [], ""
if provider == "ollama_chat":
    first = litellm.completion(**common, messages=messages, tools=[TOOL], temperature=0, max_tokens=100)
    message = first.choices[0].message
    [call] = message.tool_calls
    asked = [json.loads(call.function.arguments)["city"]]
    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
    following = (
        litellm.completion(**common, messages=messages, tools=[TOOL], max_tokens=20)
        .choices[0]
        .message.content
    )
hello = [{"role": "user", "content": "Tell me a story."}]
stream = litellm.completion(**common, messages=hello, stream=True, max_tokens=20)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
whole = litellm.completion(**common, messages=hello, max_tokens=20)
city = [{"role": "user", "content": "Name a city."}]
formatted = litellm.completion(**common, messages=city, response_format=SCHEMA, max_tokens=60, temperature=0)
vectors = litellm.embedding(
    model=f"ollama/{os.environ['EMBEDDER']}",
    input=["one", "two"],
    api_base=os.environ["BASE_URL"],
    api_key=os.environ["API_KEY"],
    extra_headers=bearer,
)
try:
    litellm.completion(**{**common, "model": f"{provider}/nobody"}, messages=hello)
    error = "none"
except Exception as exc:  # its class differs by version
    error = str(exc)
print(
    json.dumps(
        {
            "asked": asked,
            "next": following,
            "streamed": streamed,
            "whole": whole.choices[0].message.content,
            "tokens": whole.usage.completion_tokens,
            "city": json.loads(formatted.choices[0].message.content)["city"],
            "sizes": [len(vectors.data), len(vectors.data[0]["embedding"])],
            "error": error,
        }
    )
)
