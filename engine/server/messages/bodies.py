"""Bodies of /v1/messages, as Anthropic documents them. Types are strict, unknown fields an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from engine.server.messages.blocks import Block, TextBlock
from engine.server.protocol import body_limits
from engine.server.protocol.field_rules import FieldRules
from engine.server.protocol.generation_body import CacheSalt, Ignored, RequestBody, Strict, none_as
from engine.server.protocol.limits import MAX_STOPS, MAX_TOOLS

COUNT_RULES = FieldRules(
    refused={"kv_transfer_params": (), "thread": ({"type": "create"},)},
    accepted=frozenset(
        {
            "betas",
            "billing_policy",
            "cache_salt",
            "compaction",
            "context_hint",
            "diagnostics",
            "fallback_credit_token",
            "fallbacks",  # for answers that are refused, and none is
            "inference_geo",
            "max_tokens",
            "metadata",
            "service_tier",
            "speed",
            "stop_sequences",
            "stream",
            "temperature",
            "top_k",
            "top_p",
            "user_profile_id",
            "workspace_id",
        }
    ),
    ignored={
        "container": "there is no container to run code in",
        "mcp_servers": "this server can't reach MCP servers",
        "safeguards": "there is no classifier here",
    },
)
"""Of /v1/messages/count_tokens, which is given what /v1/messages will be given."""


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TurnConfig(Strict):
    effort: Effort | None = None


def _as_system(role: Any) -> Any:
    """OpenAI's newer name for the same."""
    return "system" if role == "developer" else role


class AnthropicMessage(Strict):
    """One turn, as a client wrote it or as an SDK dumps the message that it got."""

    role: Annotated[Literal["user", "assistant", "system"], BeforeValidator(_as_system)]
    content: str | Annotated[list[Block], Field(fail_fast=True)] | None = None
    clear_at: Literal["next_user_message", "never"] | None = Field(
        default=None, description="Of a system turn: until when the model is shown it."
    )
    output_config: TurnConfig | None = None
    id: Ignored = None
    type: Ignored = None
    model: Ignored = None
    stop_reason: Ignored = None
    stop_sequence: Ignored = None
    stop_details: Ignored = None
    usage: Ignored = None
    container: Ignored = None
    context_management: Ignored = None
    diagnostics: Ignored = None
    input_transformations: Ignored = None

    @model_validator(mode="after")
    def _has_content(self) -> AnthropicMessage:
        if self.content is None and self.role == "user":
            raise ValueError("a message of role user needs content")
        return self

    @property
    def blocks(self) -> list[Any]:
        """The content, as blocks whichever way it was given."""
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)]
        return self.content or []


class AnthropicTool(Strict):
    type: str | None = None
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    input_examples: list[dict[str, Any]] | None = Field(
        default=None, description="The model is shown them with the description."
    )
    allowed_callers: list[str] | None = Field(
        default=None, description="Code can't run here: every tool is called directly."
    )
    cache_control: Ignored = None
    defer_loading: Ignored = None
    eager_input_streaming: Ignored = None


def _tool_tag(tool: Any) -> str:
    """Bash, an editor and the like are tools by their type alone: their schema is known to other models."""
    if not isinstance(tool, dict) or "input_schema" in tool or not isinstance(tool.get("type"), str):
        return "a tool"
    return "a tool" if tool["type"] in ("custom", "function") else "another"


OfferedTool = Annotated[
    Annotated[AnthropicTool, Tag("a tool")]
    | Annotated[dict[str, Any], Tag("another"), Field(description="A tool that can't run here.")],
    Discriminator(_tool_tag),
]


class AnyChoice(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: Annotated[bool, none_as(False)] = False


class NoneChoice(Strict):
    type: Literal["none"]
    disable_parallel_tool_use: Ignored = None


class ToolChoice(Strict):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: Annotated[bool, none_as(False)] = False


class _Thinking(Strict):
    display: Ignored = None
    block_binding: Ignored = None


class ThinkingOn(_Thinking):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1, description="At most this many tokens of thought.")


class ThinkingAdaptive(_Thinking):
    type: Literal["adaptive"]
    budget_tokens: Ignored = None


class ThinkingOff(_Thinking):
    type: Literal["disabled", "between_tools"]
    budget_tokens: Ignored = None


class JsonFormat(Strict):
    """The answer follows the schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")
    name: Ignored = None
    strict: Ignored = None


class OutputConfig(Strict):
    effort: Effort | None = Field(default=None, description="Told to templates that know reasoning_effort.")
    format: JsonFormat | None = None
    task_budget: dict[str, Any] | None = Field(default=None, description="The model isn't told of it.")


class CountBody(RequestBody):
    """What a conversation consists of."""

    size_limits = body_limits.MESSAGES

    messages: Annotated[list[AnthropicMessage], Field(min_length=1, fail_fast=True)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[OfferedTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Annotated[AnyChoice | NoneChoice | ToolChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")] | None = (
        Field(default=None, description="Without it, a model that can be told not to think is told so.")
    )
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = Field(default=None, description="The older output_config.format.")
    chat_template_kwargs: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = Field(
        default=None, description="Accepted: nothing is cleared from the context."
    )
    cache_control: Ignored = None

    @property
    def format(self) -> JsonFormat | None:
        in_config = self.output_config.format if self.output_config else None
        return in_config or self.output_format


class MessagesBody(CountBody):
    max_tokens: int = Field(ge=0, description="0 = the prompt is read into the cache, and nothing is said.")
    stop_sequences: Annotated[
        list[Annotated[str, Field(min_length=1)]], none_as([]), Field(max_length=MAX_STOPS)
    ] = Field(default=[])
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stream: Annotated[bool, none_as(False)] = False
    cache_salt: CacheSalt = None


RULES = FieldRules(
    {**COUNT_RULES.refused, "compaction": ()},
    COUNT_RULES.accepted - {"compaction"} - MessagesBody.model_fields.keys(),
    COUNT_RULES.ignored,
)
