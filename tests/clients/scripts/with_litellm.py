"""LiteLLM as a library: OpenAI's chat, Anthropic's Messages, streamed and with a tool."""

from __future__ import annotations

import json
import os

import litellm

provider = os.environ["PROVIDER"]
base = os.environ["BASE_URL"]
common = {
    "model": f"{provider}/{os.environ['MODEL']}",
    "api_key": os.environ["API_KEY"],
    "api_base": base if provider == "anthropic" else f"{base}/v1",
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS},
}
messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
first = litellm.completion(**common, messages=messages, tools=[TOOL], temperature=0, max_tokens=100)
message = first.choices[0].message
[call] = message.tool_calls
messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
last = litellm.completion(**common, messages=messages, tools=[TOOL], max_tokens=20)
stream = litellm.completion(
    **common, messages=[{"role": "user", "content": "Hello"}], stream=True, max_tokens=20
)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
try:
    long = [{"role": "user", "content": "story " * 5000}]
    litellm.completion(**common, messages=long, max_tokens=5)
    error = "none"
except litellm.ContextWindowExceededError:
    error = "context"
print(
    json.dumps(
        {
            "asked": [json.loads(call.function.arguments)["city"]],
            "next": last.choices[0].message.content,
            "streamed": streamed,
            "error": error,
        }
    )
)
