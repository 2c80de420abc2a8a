"""Bodies of /v1/messages, as Anthropic documents them. Types are strict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from engine.server.http.errors import UnknownThread
from engine.server.messages.blocks import Block, TextBlock
from engine.server.protocol import body_limits
from engine.server.protocol.field_rules import FieldRules
from engine.server.protocol.limits import MAX_STOPS, MAX_TOOLS
from engine.server.protocol.request_body import Ignored, RequestBody, Strict, null_as
from engine.server.protocol.sampling_fields import SamplingFields

COUNT_RULES = FieldRules(
    refused={"kv_transfer_params": ()},
    accepted=frozenset(
        {
            "betas",
            "billing_policy",
            "compaction",
            "context_hint",
            "diagnostics",
            "fallback_credit_token",
            "fallbacks",  # only for refused responses, which do not occur
            "inference_geo",
            "max_tokens",
            "metadata",
            "service_tier",
            "speed",
            "stop_sequences",
            "stream",
            "user_profile_id",
            "workspace_id",
            *SamplingFields.model_fields,
        }
    ),
    ignored={
        "container": "this server can't run code in a container",
        "mcp_servers": "this server can't reach MCP servers",
        "safeguards": "this server has no safety classifier",
    },
)
"""For /v1/messages/count_tokens, which accepts the bodies of /v1/messages."""


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TurnConfig(Strict):
    effort: Effort | None = None


def _as_system(role: Any) -> Any:
    """OpenAI's newer name for the system role."""
    return "system" if role == "developer" else role


class AnthropicMessage(Strict):
    """One turn, as written by a client or dumped by an SDK from a response."""

    role: Annotated[Literal["user", "assistant", "system"], BeforeValidator(_as_system)]
    content: str | Annotated[list[Block], Field(fail_fast=True)] | None = None
    clear_at: Literal["next_user_message", "never"] | None = Field(
        default=None, description="For a system turn: when it is removed from the prompt."
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
        """The content as blocks, also if it was given as a string."""
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
        default=None, description="Shown to the model with the description."
    )
    allowed_callers: list[str] | None = Field(
        default=None, description="The server can't run code: every tool is called directly."
    )
    cache_control: Ignored = None
    defer_loading: Ignored = None
    eager_input_streaming: Ignored = None


def _tool_tag(tool: Any) -> str:
    """Bash, editor and similar tools have a type but no schema, which only other models know."""
    if not isinstance(tool, dict) or "input_schema" in tool or not isinstance(tool.get("type"), str):
        return "a tool"
    return "a tool" if tool["type"] in ("custom", "function") else "another"


OfferedTool = Annotated[
    Annotated[AnthropicTool, Tag("a tool")]
    | Annotated[
        dict[str, Any], Tag("another"), Field(description="A hosted tool, which can't run on this server.")
    ],
    Discriminator(_tool_tag),
]


class AnyChoice(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: Annotated[bool, null_as(False)] = False


class NoneChoice(Strict):
    type: Literal["none"]
    disable_parallel_tool_use: Ignored = None


class ToolChoice(Strict):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: Annotated[bool, null_as(False)] = False


class _Thinking(Strict):
    display: Ignored = None
    block_binding: Ignored = None


class ThinkingOn(_Thinking):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1, description="Maximum number of reasoning tokens.")


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
    effort: Effort | None = Field(
        default=None, description="Passed to templates that support reasoning_effort."
    )
    format: JsonFormat | None = None
    task_budget: dict[str, Any] | None = Field(
        default=None, description="Accepted, but not shown to the model."
    )


def _never_continued(thread: Any) -> Any:
    """Raises UnknownThread if the request has only the newest messages of a conversation."""
    if isinstance(thread, dict) and thread.get("type") == "continue":
        raise UnknownThread(
            f"No thread has message {thread.get('previous_message_id')!r}: this server stores no threads. "
            'Send the whole conversation with thread: {"type": "create"}.',
            param="thread",
        )
    return thread


class NewThread(Strict):
    """It changes nothing: no thread is stored."""

    type: Literal["create"]


class CountBody(RequestBody):
    """The parts of a conversation."""

    size_limits = body_limits.MESSAGES

    messages: Annotated[list[AnthropicMessage], Field(min_length=1, fail_fast=True)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[OfferedTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Annotated[AnyChoice | NoneChoice | ToolChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")] | None = (
        Field(default=None, description="Without it, reasoning is disabled if the model supports that.")
    )
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = Field(
        default=None, description="The older name of output_config.format."
    )
    chat_template_kwargs: dict[str, Any] | None = None
    thread: Annotated[NewThread | None, BeforeValidator(_never_continued)] = None
    context_management: dict[str, Any] | None = Field(
        default=None, description="Accepted: nothing is cleared from the context."
    )
    cache_control: Ignored = None

    @property
    def format(self) -> JsonFormat | None:
        in_config = self.output_config.format if self.output_config else None
        return in_config or self.output_format


class MessagesBody(SamplingFields, CountBody):
    max_tokens: int = Field(ge=0, description="0 = read the prompt into the cache and generate nothing.")
    stop_sequences: Annotated[
        list[Annotated[str, Field(min_length=1)]], null_as([]), Field(max_length=MAX_STOPS)
    ] = Field(default=[])
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stream: Annotated[bool, null_as(False)] = False


RULES = FieldRules(
    {**COUNT_RULES.refused, "compaction": ()},
    COUNT_RULES.accepted - {"compaction"} - MessagesBody.model_fields.keys(),
    COUNT_RULES.ignored,
)
