"""Bodies of /v1/messages, as Anthropic documents them. Types are strict, unknown fields an error.

`cache_control` is taken anywhere Anthropic has it and changes nothing: prefixes are always shared.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from engine.server.field_rules import FieldRules
from engine.server.generation_body import MAX_STOPS, RequestBody, Strict, none_as

MAX_TOOLS = 512

RULES = FieldRules(
    refused={
        "betas": ([],),
        "container": (),
        "context_management": (),
        "inference_geo": (),
        "kv_transfer_params": (),
        "mcp_servers": ([],),
        "output_config": (),
        "output_format": (),
        "service_tier": ("auto", "standard_only"),
        "speed": ("standard",),
    }
)


class CacheControl(Strict):
    type: Literal["ephemeral"]
    ttl: str | None = None


class _Block(Strict):
    cache_control: CacheControl | None = None


class TextBlock(_Block):
    type: Literal["text"]
    text: str
    citations: None = None


class ThinkingBlock(_Block):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(_Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(_Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class AnthropicMessage(Strict):
    role: Literal["user", "assistant"]
    content: str | Annotated[list[Block], Field(min_length=1)]


class AnthropicTool(_Block):
    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class AnyChoice(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: Annotated[bool, none_as(False)] = False


class NoneChoice(Strict):
    type: Literal["none"]


class ToolChoice(Strict):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: Annotated[bool, none_as(False)] = False


class ThinkingOn(Strict):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1, description="At most this many tokens of thought.")


class ThinkingOff(Strict):
    type: Literal["disabled"]


class CountBody(RequestBody):
    """What a conversation consists of."""

    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[AnyChoice | NoneChoice | ToolChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingOff, Field(discriminator="type")] | None = Field(
        default=None, description="Without it, a model that can be told not to think is told so."
    )
    cache_control: CacheControl | None = None


class Metadata(Strict):
    user_id: str | None = None


class MessagesBody(CountBody):
    max_tokens: int = Field(ge=1)
    stop_sequences: Annotated[
        list[Annotated[str, Field(min_length=1)]], none_as([]), Field(max_length=MAX_STOPS)
    ] = Field(default=[])
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    metadata: Metadata | None = Field(default=None, description="Says who asks; nothing here depends on it.")
    stream: Annotated[bool, none_as(False)] = False
