"""LangChain's Ollama classes: a tool, a stream, an object by a schema, a completion, embeddings."""

from __future__ import annotations

import json
import os

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from ollama import ResponseError

common = {
    "base_url": os.environ["BASE_URL"],
    "client_kwargs": {"headers": {"authorization": f"Bearer {os.environ['API_KEY']}"}},
}
model = os.environ["MODEL"]
SCHEMA = {
    "title": "Place",
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Bergen"]}},
    "required": ["city"],
}


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"12 degrees in {city}"


chat = ChatOllama(model=model, temperature=0, num_predict=100, validate_model_on_init=True, **common)
question = HumanMessage("What is the weather in Oslo?")
calling = chat.bind_tools([get_weather])
first = calling.invoke([question])
[call] = first.tool_calls
last = ChatOllama(model=model, num_predict=20, **common).bind_tools([get_weather])
answer = last.invoke([question, first, ToolMessage("12 degrees", tool_call_id=call["id"])])
streamed = "".join(chunk.text for chunk in chat.stream("What is the capital of Norway?"))
place = chat.with_structured_output(SCHEMA, method="json_schema").invoke("Name a city.")
thoughtful = ChatOllama(model=model, temperature=0, num_predict=100, reasoning=True, **common)
text = OllamaLLM(model=model, num_predict=20, **common).invoke("Tell me a story.")
vectors = OllamaEmbeddings(model=os.environ["EMBEDDER"], **common).embed_documents(["one", "two"])
try:
    ChatOllama(model="nobody", **common).invoke("Hello")
    error = "none"
except ResponseError as exc:
    error = exc.error
print(
    json.dumps(
        {
            "asked": [call["args"]["city"]],
            "next": answer.content,
            "streamed": streamed,
            "tokens": answer.usage_metadata["total_tokens"],
            "city": place["city"],
            "thought": thoughtful.invoke([question]).additional_kwargs.get("reasoning_content"),
            "text": text,
            "sizes": [len(vectors), len(vectors[0])],
            "error": error,
        }
    )
)
