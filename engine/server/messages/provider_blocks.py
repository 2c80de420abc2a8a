"""Blocks of /v1/messages that other servers know: which they are. What they say is read in
engine/server/protocol/provider_text.py. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Foreign = Mapping[str, Any]

SILENT = frozenset({"redacted_thinking", "fallback", "mcp_tool_listing", "tool_addition", "tool_removal"})
"""Types that say nothing to a model."""

_READ = frozenset(
    {"document", "search_result", "tool_reference", "browser_state", "image", "container_upload"}
)


def kind_of(block: Foreign) -> str:
    return str(block["type"])


def is_call(block: Foreign) -> bool:
    return kind_of(block).endswith("tool_use")


def is_result(block: Foreign) -> bool:
    return kind_of(block).endswith("tool_result") and isinstance(block.get("tool_use_id"), str)


def is_unknown(block: Foreign) -> bool:
    """Of a type that nobody has documented."""
    return not (kind_of(block) in _READ | SILENT | {"compaction"} or is_call(block) or is_result(block))


def summary_of(block: Foreign) -> str | None:
    """Of a compaction: what stands for all that came before it."""
    content = block.get("content")
    return content if kind_of(block) == "compaction" and isinstance(content, str) else None
