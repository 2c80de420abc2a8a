"""What another server's block, part or item says, of whatever type. Pure but for warnings.

Results of searches and of code, documents, summaries: their words are kept, what is encrypted or only counts
for the server that made it is not. Of what isn't text a mark remains, so that the model knows of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.server.protocol.unknown_fields import report_ignored

Foreign = Mapping[str, Any]

_ARTICLES = {"image": "An", "document": "A", "file": "A"}
_BARE = frozenset({"text", "content", "data", "thinking", "summary"})  # said without the field's name
_UNSAID = frozenset(
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


def unreadable_kind(block: Foreign) -> str | None:
    """What it is in a word, where it isn't text; None where it is."""
    kind, source = block.get("type"), block.get("source")
    if kind == "image":
        return "image"
    if kind == "container_upload":
        return "file"
    is_elsewhere = isinstance(source, dict) and source.get("type") in ("base64", "url", "file")
    return "document" if is_elsewhere else None


def readable_text(block: Foreign, where: str = "messages[].content") -> str:
    """What it says, field by field. `where` it lies is told in warnings."""
    unreadable = unreadable_kind(block)
    if unreadable is not None:
        report_ignored(f"{where}[type={unreadable}]", "the model reads text only")
        title = f" ({block['title']})" if isinstance(block.get("title"), str) else ""
        return f"[{_ARTICLES[unreadable]} {unreadable}{title} was here, which this model can't read.]"
    said = [_field(name, value, where) for name, value in block.items() if name not in _UNSAID]
    return "\n".join(text for text in said if text)


def _field(name: str, value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"{name}: {value}" if value and name not in _BARE else value
    if isinstance(value, Mapping):
        return readable_text(value, where)
    if isinstance(value, Sequence):
        return "\n".join(text for text in (_item(one, where) for one in value) if text)
    return f"{name}: {json.dumps(value)}"


def _item(value: Any, where: str) -> str:
    if isinstance(value, Mapping):
        return readable_text(value, where)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
