"""LlamaIndex's OpenAI-like model: complete, stream, a tool, structured output, embeddings."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
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
    """A city."""

    city: str = Field(max_length=40)


common = {"model": MODEL, "api_base": OPENAI_URL, "api_key": KEY, "temperature": 0, "is_chat_model": True}
chat = OpenAILike(**common, is_function_calling_model=True, max_tokens=200)
short = OpenAILike(**common, max_tokens=MAX_TOKENS)
weather = FunctionTool.from_defaults(get_weather)
called = chat.predict_and_call([weather], user_msg=WEATHER)
vectors = OpenAILikeEmbedding(model_name=VECTORS, api_base=OPENAI_URL, api_key=KEY)
structured = OpenAILike(**common, should_use_structured_outputs=True, max_tokens=200)
tell(
    plain=short.complete(PLAIN).text,
    streamed="".join(part.delta or "" for part in short.stream_chat([ChatMessage(STORY)])),
    after=str(called),
    object=structured.as_structured_llm(City).complete(CITY).raw.model_dump(),
    embedding=len(vectors.get_text_embedding("a ship")),
)
