"""The text in blocks, parts and items of any type, such as the results of another provider's search. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_UNLABELED = frozenset({"text", "content", "data", "thinking", "summary", "output", "logs"})
_SKIPPED = frozenset(
    {
        *("type", "id", "call_id", "tool_use_id", "file_id", "signature", "caller", "citations", "is_error"),
        *("cache_control", "encrypted_content", "encrypted_stdout", "media_type", "annotations", "logprobs"),
    }
)
_MEDIA = {
    **dict.fromkeys(("image", "image_url", "input_image", "computer_screenshot"), "An image"),
    **dict.fromkeys(("audio", "input_audio"), "A recording"),
    **dict.fromkeys(("document", "file", "input_file", "container_upload"), "A file"),
}


def readable_text(value: Any) -> str:
    """Its strings, one a line, with the names of the fields that aren't plain text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _joined(readable_text(item) for item in value)
    if isinstance(value, Mapping):
        kind = str(value.get("type") or "")
        if kind in _MEDIA and not isinstance(value.get("text"), str):
            return f"[{_MEDIA[kind]} was here.]"
        return _joined(_field(name, each) for name, each in value.items() if name not in _SKIPPED)
    return "" if value is None else json.dumps(value)


def _field(name: str, value: Any) -> str:
    text = readable_text(value)
    is_labeled = not isinstance(value, list | Mapping) and name not in _UNLABELED
    return f"{name}: {text}" if text and is_labeled else text


def _joined(texts: Any) -> str:
    return "\n".join(text for text in texts if text)
