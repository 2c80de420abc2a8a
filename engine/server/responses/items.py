"""Items of a conversation, as clients send them and as responses hold them.

A conversation may have been begun with another provider, whose servers run tools that this one doesn't: its
items are read for what they say (engine/server/responses/foreign_items.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter

from engine.server.generation_body import Ignored, Strict, none_as
from engine.server.responses.tools import Tools, known_types

_TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class TextPart(Strict):
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class OtherPart(Strict):
    """Of a tool's output: an image or a file, which a model that reads text can't see."""

    model_config = ConfigDict(extra="allow")

    type: str


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


def _kind_of_part(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in _TEXT_TYPES:
        return "text"
    return "refusal" if kind == "refusal" else "other"


OutputPart = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[OtherPart, Tag("other")],
    Discriminator(_kind_of_part),
]


class _Item(Strict):
    id: str | None = None
    status: str | None = None
    caller: Ignored = None
    created_by: Ignored = None
    internal_chat_message_metadata_passthrough: Ignored = None  # Codex's


class MessageItem(_Item):
    type: Annotated[Literal["message"], none_as("message")] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    phase: str | None = None


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str | dict[str, Any]
    async_: Ignored = Field(default=None, alias="async")


class CustomCallItem(_Item):
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: str | None = None
    input: str
    async_: Ignored = Field(default=None, alias="async")


class CallOutputItem(_Item):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    output: str | Annotated[list[OutputPart], Field(fail_fast=True)] | dict[str, Any] | None


class ToolSearchCallItem(_Item):
    type: Literal["tool_search_call"]
    call_id: str | None = None
    execution: str | None = None
    arguments: Any


class ToolSearchOutputItem(_Item):
    """Brings tools that may be called from here on."""

    type: Literal["tool_search_output"]
    call_id: str | None = None
    execution: str | None = None
    tools: Tools


class AdditionalToolsItem(_Item):
    """The same; newer versions of Codex send all their tools so."""

    type: Literal["additional_tools"]
    role: str | None = None
    tools: Tools


class ReasoningItem(_Item):
    type: Literal["reasoning"]
    summary: list[TextPart] | None = None
    content: list[TextPart] | None = None
    encrypted_content: str | None = Field(default=None, description="Another provider's can't be read.")


class ReferenceItem(Strict):
    """Stands for an item of a stored response."""

    type: Literal["item_reference"] | None = None
    id: str


class ForeignItem(Strict):
    """A call that another provider's server has run, or what came of one, with all its fields."""

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


def kind_of(value: Any) -> str | None:
    """None for one that nobody here knows. A message and a reference may leave their types out."""
    is_dict = isinstance(value, dict)
    kind = value.get("type") if is_dict else getattr(value, "type", None)
    if kind is None:
        is_reference = "id" in value and "role" not in value if is_dict else isinstance(value, ReferenceItem)
        return "item_reference" if is_reference else "message"
    kind = str(kind)
    is_foreign = kind in _FOREIGN or kind.endswith(_FOREIGN_ENDINGS)
    return _KINDS.get(kind, "foreign" if is_foreign else None)


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
    """Items of a response of ours, as those of a conversation."""
    return _ITEMS.validate_python(items)


def id_prefix(kind: str) -> str:
    return _PREFIXES.get(kind, "item")


def show_item(item: Any) -> dict[str, Any]:
    """As the API lists it."""
    shown: dict[str, Any] = item.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": item.content}]
    return shown
