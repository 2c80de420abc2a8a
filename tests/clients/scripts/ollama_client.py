"""The ollama client for Python: all that its users do, by the synchronous or the asynchronous client."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import ollama

kind = {"sync": ollama.Client, "async": ollama.AsyncClient}[os.environ["PROVIDER"]]
headers = {"authorization": f"Bearer {os.environ['ADMIN_KEY']}"}
client: Any = kind(host=os.environ["BASE_URL"], headers=headers)
model, embedder = os.environ["MODEL"], os.environ["EMBEDDER"]
QUESTION = {"role": "user", "content": "What is the weather in Oslo?"}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Bergen"]}}, "required": ["city"]}
COLD = {"temperature": 0, "num_predict": 100, "num_ctx": 4096, "repeat_penalty": 1.0, "mirostat": 0}


def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
      city: Its name
    """
    return f"12 degrees in {city}"


async def done(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def each(stream: Any) -> AsyncIterator[Any]:
    stream = await done(stream)
    if hasattr(stream, "__aiter__"):
        async for part in stream:
            yield part
    else:
        for part in stream:
            yield part


async def refused(call: Callable[[], Any]) -> list[Any]:
    """Status and message of an error, also of one that comes with a stream's first part."""
    try:
        result = await done(call())
        if not hasattr(result, "model_fields"):
            [part async for part in each(result)]
    except ollama.ResponseError as error:
        return [error.status_code, error.error]
    return ["none"]


async def chat() -> dict[str, Any]:
    """A tool's round trip, streamed and whole."""
    messages: list[Any] = [QUESTION]
    asked: list[str] = []
    async for part in each(client.chat(model, messages, tools=[get_weather], stream=True, options=COLD)):
        asked += [call.function.arguments["city"] for call in part.message.tool_calls or ()]
    first = await done(client.chat(model, messages, tools=[get_weather], options=COLD))
    messages += [first.message, {"role": "tool", "tool_name": "get_weather", "content": get_weather("Oslo")}]
    last = await done(client.chat(model, messages, tools=[get_weather], options={"num_predict": 20}))
    thoughtful = await done(client.chat(model, [QUESTION], think=True, options=COLD))
    return {
        "asked": asked,
        "asked_whole": [call.function.arguments["city"] for call in first.message.tool_calls],
        "next": last.message.content,
        "reason": last.done_reason,
        "thought": thoughtful.message.thinking,
    }


async def generate() -> dict[str, Any]:
    parts = [
        part
        async for part in each(
            client.generate(model, "Tell me a story.", stream=True, options={"num_predict": 20})
        )
    ]
    final = parts[-1]
    formatted = await done(client.generate(model, "Name a city.", format=SCHEMA, options=COLD))
    logged = await done(
        client.generate(model, "Once", raw=True, logprobs=True, top_logprobs=2, options={"num_predict": 3})
    )
    times = [final.total_duration, final.prompt_eval_duration, final.eval_duration]
    return {
        "streamed": "".join(part.response for part in parts),
        "tokens": [final.prompt_eval_count, final.eval_count],
        "times": times,
        "city": json.loads(formatted.response)["city"],
        "logprobs": [len(one.top_logprobs) for one in logged.logprobs],
    }


async def models() -> dict[str, Any]:
    """List, show, load, unload, copy, delete, pull."""
    listed = await done(client.list())
    shown = await done(client.show(model))
    await done(client.generate(model, keep_alive="10m"))
    loaded = [one.model for one in (await done(client.ps())).models]
    unloaded = (await done(client.generate(model, keep_alive=0))).done_reason
    await done(client.copy(model, "twin"))
    twins = [one.model for one in (await done(client.list())).models if one.model.startswith("twin")]
    deleted = await done(client.delete("twin"))
    progress = [part async for part in each(client.pull(os.environ["HUB_MODEL"], stream=True))]
    return {
        "listed": [one.model for one in listed.models],
        "size": listed.models[0].size,
        "capabilities": shown.capabilities,
        "context": shown.modelinfo["qwen3.context_length"],
        "loaded": loaded,
        "unloaded": unloaded,
        "twins": twins,
        "deleted": deleted.status,
        "pulled": [progress[0].status, progress[-1].status],
        "digests": len({part.digest for part in progress if part.digest and part.total}),
        "gone": (await done(client.delete(os.environ["HUB_MODEL"]))).status,
    }


async def embeddings() -> dict[str, Any]:
    both = await done(client.embed(embedder, ["one", "two"]))
    short = await done(client.embed(embedder, "one", dimensions=8))
    older = await done(client.embeddings(embedder, "one"))
    return {
        "sizes": [
            len(both.embeddings),
            len(both.embeddings[0]),
            len(short.embeddings[0]),
            len(older.embedding),
        ],
        "length": sum(value * value for value in short.embeddings[0]),
        "tokens": both.prompt_eval_count,
    }


async def main() -> None:
    got = {
        **await chat(),
        **await generate(),
        "models": await models(),
        "embeddings": await embeddings(),
        "missing": await refused(lambda: client.chat("nobody", [QUESTION])),
        "missing_stream": await refused(lambda: client.generate("nobody", "a", stream=True)),
        "create": await refused(lambda: client.create("mine", from_=model)),
    }
    print(json.dumps(got))


asyncio.run(main())
