"""langchain-openai: invoke, stream, a bound tool, structured output, embeddings."""

from __future__ import annotations

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from session import (
    CITY,
    KEY,
    MAX_TOKENS,
    MODEL,
    OPENAI_URL,
    PLAIN,
    STORY,
    VECTORS,
    WEATHER,
    get_weather,
    tell,
)


class City(BaseModel):
    city: str = Field(max_length=40)


chat = ChatOpenAI(model=MODEL, base_url=OPENAI_URL, api_key=KEY, temperature=0, max_retries=0)
short = chat.bind(max_tokens=MAX_TOKENS)
weather = tool(get_weather)
messages = [HumanMessage(WEATHER)]
call = chat.bind_tools([weather]).invoke(messages)
results = [ToolMessage(weather.invoke(one["args"]), tool_call_id=one["id"]) for one in call.tool_calls]
after = chat.bind_tools([weather], max_tokens=MAX_TOKENS).invoke([*messages, call, *results])
vectors = OpenAIEmbeddings(model=VECTORS, base_url=OPENAI_URL, api_key=KEY, check_embedding_ctx_length=False)
plain = short.invoke(PLAIN)
tell(
    plain=plain.content,
    tokens=plain.usage_metadata["output_tokens"],
    streamed="".join(chunk.content for chunk in short.stream(STORY)),
    after=after.content,
    object=chat.with_structured_output(City, method="json_schema").invoke(CITY).model_dump(),
    embedding=len(vectors.embed_query("a ship")),
)
