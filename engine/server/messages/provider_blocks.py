"""Classifies blocks of /v1/messages that only other servers support. Pure.

Their text is extracted in engine/server/protocol/provider_text.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Block = Mapping[str, Any]

WITHOUT_TEXT = frozenset(
    {"redacted_thinking", "fallback", "mcp_tool_listing", "tool_addition", "tool_removal"}
)
"""Types without any text for the model."""

_READ = frozenset(
    {"document", "search_result", "tool_reference", "browser_state", "image", "container_upload"}
)


def kind_of(block: Block) -> str:
    return str(block["type"])


def is_call(block: Block) -> bool:
    return kind_of(block).endswith("tool_use")


def is_result(block: Block) -> bool:
    return kind_of(block).endswith("tool_result") and isinstance(block.get("tool_use_id"), str)


def is_unknown(block: Block) -> bool:
    """Whether the block's type is undocumented."""
    return not (kind_of(block) in _READ | WITHOUT_TEXT | {"compaction"} or is_call(block) or is_result(block))


def summary_of(block: Block) -> str | None:
    """The summary in a compaction block, which replaces everything before it."""
    content = block.get("content")
    return content if kind_of(block) == "compaction" and isinstance(content, str) else None
