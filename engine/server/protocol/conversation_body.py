"""A conversation: messages and tools, as OpenAI and vLLM document them, to be rendered by the chat template.

A history may come from another server, or as an SDK dumps it, so older and provider-specific fields are
accepted and translated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from engine.errors import InvalidRequest
from engine.server.protocol import body_limits
from engine.server.protocol.generation_body import STRICT_TOOL
from engine.server.protocol.hosted_tools import FUNCTIONS_ONLY
from engine.server.protocol.limits import MAX_TOOLS
from engine.server.protocol.provider_parts import (
    mark_unsupported_parts,
    normalize_assistant_message,
    normalize_text_part,
    read_reasoning,
)
from engine.server.protocol.request_body import Ignored, RequestBody, Strict, null_as
from engine.server.protocol.size_check import is_larger

_CHARS_PER_MESSAGE = 64  # what the template adds around each


class FunctionCall(Strict):
    name: str
    arguments: Annotated[str | dict[str, Any], null_as("")] = ""
    parsed_arguments: Ignored = None
    provider_specific_fields: Ignored = None


def _as_function_call(call: Any) -> Any:
    """Convert a custom tool's call to a function call whose only argument is its text.

    Other servers' types of function calls become plain function calls.
    """
    if not isinstance(call, dict):
        return call
    custom = call.get("custom") if call.get("type") == "custom" else None
    if not isinstance(custom, dict):
        kind = call.get("type")
        is_other = isinstance(kind, str) and kind != "function" and isinstance(call.get("function"), dict)
        return {**call, "type": "function"} if is_other else call
    function = {"name": custom.get("name"), "arguments": {"input": custom.get("input") or ""}}
    rest = {name: value for name, value in call.items() if name not in ("custom", "type")}
    return {**rest, "type": "function", "function": function}


class ToolCall(Strict):
    id: str | None = None
    index: Ignored = None  # some clients send back the stream's field
    type: Annotated[Literal["function"], null_as("function")] = "function"
    function: FunctionCall
    extra_content: Ignored = None
    provider_specific_fields: Ignored = None


class TextPart(Strict):
    type: Literal["text"]
    text: Annotated[str, null_as("")]
    cache_control: Ignored = None
    annotations: Ignored = None


class ChatMessage(Strict):
    """One turn. Clients send assistant messages back as received, including nulls."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        str
        | Annotated[list[Annotated[TextPart, BeforeValidator(normalize_text_part)]], Field(fail_fast=True)]
        | None
    ) = None
    name: str | None = None
    reasoning: Annotated[str | None, BeforeValidator(read_reasoning)] = None
    reasoning_content: Annotated[str | None, BeforeValidator(read_reasoning)] = None
    tool_calls: (
        Annotated[list[Annotated[ToolCall, BeforeValidator(_as_function_call)]], Field(fail_fast=True)] | None
    ) = None
    tool_call_id: str | None = None
    id: Ignored = None
    annotations: Ignored = None
    audio: Ignored = None
    cache_control: Ignored = None
    metadata: Ignored = None
    parsed: Ignored = None
    phase: Ignored = None
    provider_specific_fields: Ignored = None
    status: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _convert_deprecated_fields(cls, message: Any) -> Any:
        return (
            normalize_assistant_message(_convert_deprecated_fields(message))
            if isinstance(message, dict)
            else message
        )

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and self.role not in ("assistant", "tool"):
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    @property
    def text(self) -> str:
        """The content with its parts joined; empty if there is none."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


def _convert_deprecated_fields(message: dict[str, Any]) -> dict[str, Any]:
    """Convert the deprecated role `function` and the fields `refusal` and `function_call`."""
    if message.get("role") == "function":
        message = {**message, "role": "tool"}
    if message.keys().isdisjoint({"refusal", "function_call"}):
        return message
    kept = {name: value for name, value in message.items() if name not in ("refusal", "function_call")}
    if kept.get("content") is None:
        kept["content"] = message.get("refusal")
    if message.get("function_call") is not None and not kept.get("tool_calls"):
        kept["tool_calls"] = [{"type": "function", "function": message["function_call"]}]
    return kept


class FunctionDefinition(Strict):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description=STRICT_TOOL)


class Tool(Strict):
    type: Literal["function"] = "function"
    function: FunctionDefinition
    cache_control: Ignored = None
    _index: int = PrivateAttr(default=0)

    @property
    def index(self) -> int:
        """Its index in the client's list, of which hosted tools are dropped."""
        return self._index

    def with_index(self, index: int) -> Self:
        self._index = index
        return self


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Strict):
    """The tools that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]

    @property
    def names(self) -> set[str]:
        return {tool.function.name for tool in self.tools}


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _field_values(models: Sequence[Strict]) -> list[Any]:
    """The values of all their fields, nested models included."""
    parts: list[Any] = []
    for model in models:
        for value in vars(model).values():
            inner = value if isinstance(value, list) else [value]
            found = [item for item in inner if isinstance(item, Strict)]
            parts += _field_values(found) if found else [value]
    return parts


class ConversationBody(RequestBody):
    """A conversation to be rendered by the chat template."""

    size_limits = body_limits.CONVERSATION

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, fail_fast=True), BeforeValidator(mark_unsupported_parts)
    ]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), FUNCTIONS_ONLY] | None = None
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = Field(
        default=None, description="Passed to the template."
    )
    chat_template: str | None = Field(
        default=None, description="Accepted only with --trust-request-chat-template."
    )
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: Annotated[bool, null_as(True)] = True
    continue_final_message: Annotated[bool, null_as(False)] = Field(
        default=False, description="The last message is the start of the answer, which the model continues."
    )
    add_special_tokens: Annotated[bool, null_as(False)] = False

    def is_larger(self, chars: int) -> bool:
        """Whether there are about `chars` characters or more to render; many messages count as large."""
        if len(self.messages) > chars // _CHARS_PER_MESSAGE:
            return True
        more = [self.documents, self.chat_template_kwargs, *_field_values(self.tools or [])]
        return is_larger(more, chars // 2) or is_larger(_field_values(self.messages), chars // 2)

    @model_validator(mode="after")
    def _check_continuation(self) -> ConversationBody:
        if self.continue_final_message and "add_generation_prompt" not in self.model_fields_set:
            raise InvalidRequest(
                "continue_final_message needs add_generation_prompt: false.", param="continue_final_message"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt can't both be true.",
                param="continue_final_message",
            )
        return self
