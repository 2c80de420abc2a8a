"""Content parts that are not plain text, often from another provider. Pure, except for warnings.

An image in the current question is refused later. One in the history is replaced by a placeholder, and of
parts of unknown types the text is kept. Reasoning and tool calls inside an assistant's content become
reasoning and tool calls of the message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.server.protocol.provider_text import readable_text
from engine.server.protocol.unknown_fields import report_ignored

UNSUPPORTED_MEDIA = {
    **dict.fromkeys(("image", "image_url", "input_image"), "An image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "A recording"),
    **dict.fromkeys(("video", "video_url", "input_video"), "A video"),
    **dict.fromkeys(("document", "file", "input_file"), "A file"),
}
REASONING_PARTS = frozenset({"thinking", "reasoning", "redacted_thinking"})
_MAX_TURNS = 100_000  # or parts of one: more fit no context, and scanning millions takes seconds
_PLAIN = frozenset({"input_text", "output_text", "summary_text", "reasoning_text"})  # in other APIs
_READ = _PLAIN | REASONING_PARTS | {"text", "refusal"}  # types that are read in place
_RESULTS = frozenset({"tool_result", "function_response"})  # tool results in a user's turn


def mark_unsupported_parts(turns: Any) -> Any:
    """Turns or items with placeholders for parts that are not text, except in the current question."""
    if not isinstance(turns, list) or len(turns) > _MAX_TURNS:
        return turns
    affected = [
        number
        for number, turn in enumerate(turns)
        if isinstance(turn, dict)
        and isinstance(turn.get("content"), list)
        and len(turn["content"]) <= _MAX_TURNS
        and any(_is_unsupported(part, turn) for part in turn["content"])
    ]
    if not affected:
        return turns
    question_start = _question_start(turns)
    replaced = {
        n: _with_placeholders(turns[n])
        for n in affected
        if n < question_start or _role(turns[n]) in ("assistant", "tool")
    }
    return [replaced.get(number, turn) for number, turn in enumerate(turns)]


def _question_start(turns: list[Any]) -> int:
    """The index where the current question starts: after the assistant's last turn.

    There is none if that turn called tools whose results follow.
    """
    last = max((number for number, turn in enumerate(turns) if _is_by_assistant(turn)), default=-1)
    return len(turns) if any(_is_result(turn) for turn in turns[last + 1 :]) else last + 1


def _is_by_assistant(turn: Any) -> bool:
    return _role(turn) == "assistant" or type_of(turn).endswith("_call") or type_of(turn) == "reasoning"


def _is_result(turn: Any) -> bool:
    return (
        _role(turn) in ("tool", "function")
        or type_of(turn).endswith("_output")
        or (_role(turn) == "user" and any(type_of(part) in _RESULTS for part in _parts(turn)))
    )


def _parts(turn: Any) -> list[Any]:
    content = turn.get("content")
    return content[:_MAX_TURNS] if isinstance(content, list) else []


def _is_unsupported(part: Any, turn: Any) -> bool:
    """Whether the part has a type that is not read in place."""
    kind = type_of(part)
    return bool(kind) and kind not in _READ and not (kind == "tool_use" and _role(turn) == "assistant")


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, dict) else None


def type_of(value: Any) -> str:
    """The type of a part or an item; empty if it has none."""
    return str(value.get("type") or "") if isinstance(value, dict) else ""


def _with_placeholders(turn: dict[str, Any]) -> dict[str, Any]:
    content = [_placeholder(part) if _is_unsupported(part, turn) else part for part in turn["content"]]
    return {**turn, "content": content}


def _placeholder(part: Any) -> dict[str, str]:
    kind = type_of(part)
    if kind not in UNSUPPORTED_MEDIA:
        report_ignored(f"content[type={kind}]", "unknown type: only its text is read")
        return {"type": "text", "text": readable_text(part, "content")}
    report_ignored(f"content[type={kind}]", "the model reads text only")
    return {"type": "text", "text": f"[{UNSUPPORTED_MEDIA[kind]} was here, which this model can't read.]"}


def normalize_text_part(part: Any) -> Any:
    """Text parts of other APIs as chat text parts; a refusal is treated as text."""
    if type_of(part) == "refusal" and isinstance(part.get("refusal"), str | None):
        return {"type": "text", "text": part.get("refusal") or ""}
    return {**part, "type": "text"} if type_of(part) in _PLAIN else part


def normalize_assistant_message(message: dict[str, Any]) -> dict[str, Any]:
    """Move reasoning and calls from an assistant's content parts to the message's own fields."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, list):
        return message
    reasoning_parts = [part for part in content if type_of(part) in REASONING_PARTS]
    calls = [part for part in content if type_of(part) == "tool_use"]
    if not reasoning_parts and not calls:
        return message
    remaining = [
        part for part in content if type_of(part) not in REASONING_PARTS and type_of(part) != "tool_use"
    ]
    normalized = {**message, "content": remaining or None}
    reasoning = "".join(_reasoning_text(part) for part in reasoning_parts)
    if reasoning and not (message.get("reasoning") or message.get("reasoning_content")):
        normalized["reasoning_content"] = reasoning
    if calls and not message.get("tool_calls"):  # otherwise they are repeated there
        normalized["tool_calls"] = [_call(part) for part in calls]
    return normalized


def _reasoning_text(part: Mapping[str, Any]) -> str:
    value = next((part[name] for name in ("thinking", "reasoning", "text", "summary") if part.get(name)), "")
    return str(read_reasoning(value) or "")


def read_reasoning(value: Any) -> Any:
    """The text of reasoning that is given as a part or a list of parts."""
    if isinstance(value, list):
        return "".join(str(part.get("text") or "") for part in value if isinstance(part, dict)) or None
    return (_reasoning_text(value) or None) if isinstance(value, dict) else value


def _call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(part.get("input") or {}, ensure_ascii=False)
    function = {"name": part.get("name"), "arguments": arguments}
    return {"id": part.get("id"), "type": "function", "function": function}
