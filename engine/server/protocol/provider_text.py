"""Extracts the text of another provider's block, part or item of any type. Pure, except for warnings.

The text of search and code results, documents and summaries is kept; encrypted and server-specific fields are
not. Other media is replaced by a placeholder, so that the model knows of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.server.protocol.unknown_fields import report_ignored

Block = Mapping[str, Any]

_ARTICLES = {"image": "An", "document": "A", "file": "A"}
_UNLABELED = frozenset({"text", "content", "data", "thinking", "summary"})  # shown without the name
_SKIPPED = frozenset(
    {
        "cache_control",
        "call_id",
        "caller",
        "citations",
        "encrypted_content",
        "encrypted_stdout",
        "file_id",
        "id",
        "is_error",
        "media_type",
        "signature",
        "tool_use_id",
        "type",
    }
)


def unreadable_kind(block: Block) -> str | None:
    """The kind of media, if the block is not text; None if it is."""
    kind, source = block.get("type"), block.get("source")
    if kind == "image":
        return "image"
    if kind == "container_upload":
        return "file"
    is_attached = isinstance(source, dict) and source.get("type") in ("base64", "url", "file")
    return "document" if is_attached else None


def readable_text(block: Block, where: str = "messages[].content") -> str:
    """The block's text, field by field. `where`: its path, for warnings."""
    unreadable = unreadable_kind(block)
    if unreadable is not None:
        report_ignored(f"{where}[type={unreadable}]", "the model reads text only")
        title = f" ({block['title']})" if isinstance(block.get("title"), str) else ""
        return f"[{_ARTICLES[unreadable]} {unreadable}{title} was here, which this model can't read.]"
    texts = [_field(name, value, where) for name, value in block.items() if name not in _SKIPPED]
    return "\n".join(text for text in texts if text)


def _field(name: str, value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"{name}: {value}" if value and name not in _UNLABELED else value
    if isinstance(value, Mapping):
        return readable_text(value, where)
    if isinstance(value, Sequence):
        return "\n".join(text for text in (_item(entry, where) for entry in value) if text)
    return f"{name}: {json.dumps(value)}"


def _item(value: Any, where: str) -> str:
    if isinstance(value, Mapping):
        return readable_text(value, where)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
