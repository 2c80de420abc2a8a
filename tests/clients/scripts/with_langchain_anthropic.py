"""langchain-anthropic: invoke, stream, a bound tool."""

from __future__ import annotations

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from session import BASE_URL, KEY, MAX_TOKENS, MODEL, PLAIN, STORY, WEATHER, get_weather, tell

common = {"model": MODEL, "base_url": BASE_URL, "api_key": KEY, "temperature": 0, "max_retries": 0}
chat = ChatAnthropic(**common, max_tokens=200)
short = ChatAnthropic(**common, max_tokens=MAX_TOKENS)
weather = tool(get_weather)
messages = [HumanMessage(WEATHER)]
call = chat.bind_tools([weather]).invoke(messages)
results = [ToolMessage(weather.invoke(one["args"]), tool_call_id=one["id"]) for one in call.tool_calls]
after = short.bind_tools([weather]).invoke([*messages, call, *results])
plain = short.invoke(PLAIN)
tell(
    plain=plain.content,
    tokens=plain.usage_metadata["output_tokens"],
    streamed="".join(chunk.text for chunk in short.stream(STORY)),
    after=after.text,
)
