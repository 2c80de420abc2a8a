"""Items of a conversation, as sent by clients and as stored in responses.

A conversation may have started with another provider, whose items for hosted tools are converted to text and
calls (engine/server/openai/responses/provider_items.py).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, model_validator

from engine.server.openai.responses.tools import Tools, known_types
from engine.server.protocol.provider_parts import REASONING_PARTS, UNSUPPORTED_MEDIA, type_of
from engine.server.protocol.provider_text import readable_text
from engine.server.protocol.request_body import Ignored, Strict, null_as

_TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class TextContent(Strict):
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: Annotated[str, null_as("")]
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: Annotated[str, null_as("")]

    @property
    def text(self) -> str:
        return self.refusal


class OtherPart(Strict):
    """An image or a file in a tool's output, which a text model cannot read."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, null_as("")] = ""


MessagePart = Annotated[TextContent | RefusalPart, Field(discriminator="type")]


def _part_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in _TEXT_TYPES:
        return "text"
    return "refusal" if kind == "refusal" else "other"


OutputPart = Annotated[
    Annotated[TextContent, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[OtherPart, Tag("other")],
    Discriminator(_part_tag),
]


def _to_text_parts(given: Any) -> Any:
    """Reasoning as text parts, also if it is given as a string or as parts of unknown types."""
    if isinstance(given, str | dict):
        given = [given]
    if not isinstance(given, list):
        return given
    return [_to_reasoning_part(part) for part in given]


def _to_reasoning_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "summary_text", "text": part}
    if isinstance(part, dict) and part.get("type") not in _TEXT_TYPES:
        return {"type": "summary_text", "text": readable_text(part, "input[].summary")}
    return part


def _output_parts(given: Any) -> Any:
    """A tool's output, with strings and numbers as text parts."""
    if isinstance(given, list):
        return [part if isinstance(part, dict) else _as_text(part) for part in given]
    return json.dumps(given) if isinstance(given, bool | int | float) else given


def _as_text(value: Any) -> dict[str, Any]:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {"type": "input_text", "text": text}


_Metadata = Annotated[str | None, BeforeValidator(lambda value: value if isinstance(value, str) else None)]
"""Metadata not shown to the model; values of other types are dropped."""
_Output = str | Annotated[list[OutputPart], Field(fail_fast=True)] | dict[str, Any] | None


class _Item(Strict):
    id: _Metadata = None
    status: _Metadata = None
    phase: _Metadata = None
    caller: Ignored = None
    created_by: Ignored = None
    internal_chat_message_metadata_passthrough: Ignored = None  # Codex's


class MessageItem(_Item):
    type: Annotated[Literal["message"], null_as("message")] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[MessagePart], Field(fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, item: Any) -> Any:
        """Accept any type name. An assistant's message may lack content, or contain reasoning and calls."""
        if not isinstance(item, dict):
            return item
        if item.get("type") not in ("message", None):
            item = {**item, "type": "message"}
        if item.get("role") != "assistant":
            return item
        content = item.get("content")
        if isinstance(content, list):
            parts = [_assistant_part(part) for part in content if type_of(part) not in REASONING_PARTS]
            return {**item, "content": parts}
        return {**item, "content": ""} if content is None else item


def _assistant_part(part: Any) -> Any:
    is_call = type_of(part) == "tool_use"
    return {"type": "output_text", "text": readable_text(part, "input[].content")} if is_call else part


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    call_id: str | None = None
    name: str
    namespace: str | None = None
    arguments: Annotated[str | dict[str, Any], null_as("")] = ""
    async_: Ignored = Field(default=None, alias="async")


class CustomCallItem(_Item):
    type: Literal["custom_tool_call"]
    call_id: str | None = None
    name: str
    namespace: str | None = None
    input: Annotated[str, null_as("")] = ""
    async_: Ignored = Field(default=None, alias="async")


class CallOutputItem(_Item):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    output: Annotated[_Output, BeforeValidator(_output_parts)] = None


class ToolSearchCallItem(_Item):
    type: Literal["tool_search_call"]
    call_id: str | None = None
    execution: str | None = None
    arguments: Any = None


class ToolSearchOutputItem(_Item):
    """Adds tools that may be called from here on."""

    type: Literal["tool_search_output"]
    call_id: str | None = None
    execution: str | None = None
    tools: Annotated[Tools, null_as([])]


class AdditionalToolsItem(_Item):
    """Adds tools, too; newer versions of Codex send all their tools this way."""

    type: Literal["additional_tools"]
    role: str | None = None
    tools: Annotated[Tools, null_as([])]


class ReasoningItem(_Item):
    type: Literal["reasoning"]
    summary: Annotated[list[TextContent] | None, BeforeValidator(_to_text_parts)] = None
    content: Annotated[list[TextContent] | None, BeforeValidator(_to_text_parts)] = None
    encrypted_content: _Metadata = Field(default=None, description="Read only if it comes from this server.")


class ReferenceItem(Strict):
    """Refers to an item of a stored response."""

    type: Literal["item_reference"] | None = None
    id: str


class ForeignItem(Strict):
    """A call that another provider's server has run, or its output, with all fields."""

    model_config = ConfigDict(extra="allow")

    type: str
    id: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        return self.__pydantic_extra__ or {}


_KINDS: dict[str, str] = {
    "message": "message",
    "function_call": "function_call",
    "custom_tool_call": "custom_tool_call",
    "function_call_output": "call_output",
    "custom_tool_call_output": "call_output",
    "tool_search_call": "tool_search_call",
    "tool_search_output": "tool_search_output",
    "additional_tools": "additional_tools",
    "reasoning": "reasoning",
    "item_reference": "item_reference",
}
# They would change the response, or are message parts of unknown role.
_REFUSED = frozenset(
    {"compaction_trigger", "configuration_update", "refusal", *_TEXT_TYPES, *UNSUPPORTED_MEDIA}
)
_ROLES = ("system", "developer", "user", "assistant")
_FOREIGN = frozenset(
    {
        "compaction",
        "compaction_summary",
        "context_compaction",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "program",
    }
)
_FOREIGN_ENDINGS = ("_call", "_output")


def is_known(item: ForeignItem) -> bool:
    """Whether its type is documented by another provider."""
    return item.type in _FOREIGN or item.type.endswith(_FOREIGN_ENDINGS)


def kind_of(value: Any) -> str | None:
    """The item's variant; None for invalid items and for those that are not supported.

    Messages and references may omit their type; anything with a role and content is a message.
    """
    is_dict = isinstance(value, dict)
    kind = value.get("type") if is_dict else getattr(value, "type", None)
    if kind is None:
        is_reference = "id" in value and "role" not in value if is_dict else isinstance(value, ReferenceItem)
        return "item_reference" if is_reference else "message"
    kind = str(kind)
    if kind in _KINDS or kind in _REFUSED:
        return _KINDS.get(kind)
    is_message = is_dict and value.get("role") in _ROLES and "content" in value
    return "message" if is_message else "foreign"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[CallOutputItem, Tag("call_output")]
    | Annotated[ToolSearchCallItem, Tag("tool_search_call")]
    | Annotated[ToolSearchOutputItem, Tag("tool_search_output")]
    | Annotated[AdditionalToolsItem, Tag("additional_tools")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ReferenceItem, Tag("item_reference")]
    | Annotated[ForeignItem, Tag("foreign")],
    known_types(kind_of, "an item"),
]

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "tool_search_call": "tsc",
    "reasoning": "rs",
}

_ITEMS: TypeAdapter[list[Any]] = TypeAdapter(list[Item])


def read_items(items: list[dict[str, Any]]) -> list[Any]:
    """Parse the output items of one of our responses."""
    return _ITEMS.validate_python(items)


def id_prefix(kind: str) -> str:
    return _PREFIXES.get(kind, "item")


def show_item(item: Any) -> dict[str, Any]:
    """The item as listed by the API."""
    shown: dict[str, Any] = item.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": item.content}]
    return shown
