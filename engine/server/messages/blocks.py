"""Content blocks of /v1/messages: the four supported types, and all others as plain objects.

Documents, images and the results of another provider's tools are accepted as objects and read in
engine/server/messages/provider_blocks.py. `cache_control` is accepted everywhere, without effect.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from engine.server.protocol.request_body import Ignored, Strict, null_as


class _Block(Strict):
    cache_control: Ignored = None


class TextBlock(_Block):
    type: Literal["text"]
    text: Annotated[str, null_as("")]
    citations: list[Any] | None = Field(
        default=None, description="Accepted, but the cited text is not shown to the model."
    )
    parsed_output: Ignored = None


class ThinkingBlock(_Block):
    type: Literal["thinking"]
    thinking: Annotated[str, null_as("")] = ""
    signature: Ignored = None


def _as_object(given: Any) -> Any:
    """Some clients keep a call's input as the JSON text that they received in a stream."""
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            return json.loads(given or "{}")
    return given


class ToolUseBlock(_Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Annotated[dict[str, Any], BeforeValidator(_as_object), null_as({})] = Field(default={})
    caller: Ignored = None
    toolset_name: Ignored = None


def _tag(block: Any) -> str | None:
    """Tags that cannot be field names, so that the path in an error is a path of the body."""
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    if not isinstance(kind, str):
        return None
    return f"a {kind}" if kind in ("text", "thinking", "tool_use", "tool_result") else "another"


_OtherBlock = Annotated[dict[str, Any], Field(description="A block of another type.")]

ResultBlock = Annotated[
    Annotated[TextBlock, Tag("a text")] | Annotated[_OtherBlock, Tag("another")],
    Discriminator(lambda block: "a text" if _tag(block) == "a text" else _tag(block) and "another"),
]


class ToolResultBlock(_Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Annotated[list[ResultBlock], Field(fail_fast=True)] | None = None
    is_error: bool | None = Field(default=None, description="Marks the result as an error for the model.")
    toolset_name: Ignored = None


Block = Annotated[
    Annotated[TextBlock, Tag("a text")]
    | Annotated[ThinkingBlock, Tag("a thinking")]
    | Annotated[ToolUseBlock, Tag("a tool_use")]
    | Annotated[ToolResultBlock, Tag("a tool_result")]
    | Annotated[_OtherBlock, Tag("another")],
    Discriminator(_tag),
]
