"""The openai client: chat and Responses, whole and streamed, a tool's round trip, an object by a schema."""

from __future__ import annotations

import json
import os

import openai

client = openai.OpenAI(base_url=f"{os.environ['BASE_URL']}/v1", api_key=os.environ["API_KEY"], max_retries=0)
model = os.environ["MODEL"]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
QUESTION = {"role": "user", "content": "What is the weather in Oslo?"}
CAPITAL = {"role": "user", "content": "What is the capital of Norway?"}


def chat() -> dict[str, object]:
    tools = [{"type": "function", "function": FUNCTION}]
    messages = [QUESTION]
    answer = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0)
    message = answer.choices[0].message
    [call] = message.tool_calls
    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
    last = client.chat.completions.create(
        model=model, messages=messages, tools=tools, store=True, metadata={"trace": "1"}, max_tokens=20
    )
    with client.chat.completions.stream(
        model=model, messages=[CAPITAL], temperature=0, max_tokens=100
    ) as stream:
        streamed = stream.get_final_completion().choices[0].message.content
    return {"asked": [json.loads(call.function.arguments)["city"]], "streamed": streamed, "next": said(last)}


def said(completion: openai.types.chat.ChatCompletion) -> str:
    return completion.choices[0].message.content


def responses() -> dict[str, object]:
    tools = [{"type": "function", **FUNCTION}, {"type": "web_search"}]
    first = client.responses.create(model=model, input=[QUESTION], tools=tools, temperature=0)
    [call] = [item for item in first.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"}
    last = client.responses.create(
        model=model, input=[QUESTION, *first.output, result], tools=tools, max_output_tokens=20
    )
    with client.responses.stream(model=model, input="Tell me a story.", max_output_tokens=20) as stream:
        # `get_final_response` wants the event response.completed, and one cut short is response.incomplete.
        streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    continued = client.responses.create(
        model=model, input="Hello", previous_response_id=last.id, max_output_tokens=20
    )
    return {
        "asked": [json.loads(call.arguments)["city"]],
        "streamed": streamed,
        "next": continued.output_text,
    }


print(json.dumps({"chat": chat, "responses": responses}[os.environ["PROVIDER"]]()))
