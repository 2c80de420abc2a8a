"""The anthropic client: whole and streamed answers, a tool's round trip, an error."""

from __future__ import annotations

import json
import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
model = os.environ["MODEL"]
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
messages = [{"role": "user", "content": "What is the weather in Oslo?"}]

greedy = {"temperature": 0}  # newer clients have no argument for it
first = client.messages.create(
    model=model, max_tokens=100, messages=messages, tools=[TOOL], extra_body=greedy
)
[use] = [block for block in first.content if block.type == "tool_use"]
result = {"type": "tool_result", "tool_use_id": use.id, "content": "12 degrees"}
messages += [
    {"role": "assistant", "content": [block.model_dump() for block in first.content]},
    {"role": "user", "content": [result]},
]
with client.messages.stream(model=model, max_tokens=32000, messages=messages, tools=[TOOL]) as stream:
    streamed = stream.get_final_message()
messages += [{"role": "assistant", "content": streamed.content}, {"role": "user", "content": "Hello"}]
last = client.messages.create(model=model, max_tokens=20, messages=messages, system="Be brief.")

try:
    client.messages.create(model="no-such-model", max_tokens=5, messages=messages)
    error = "none"
except anthropic.NotFoundError as failure:
    error = failure.body["error"]["type"]

print(
    json.dumps(
        {
            "asked": [use.input["city"]],
            "streamed": "".join(block.text for block in streamed.content if block.type == "text"),
            "next": last.content[0].text,
            "error": error,
        }
    )
)
