"""Parts of a chat's messages and of a conversation's items that hold no plain text. Pure but for warnings.

A picture that is asked about can't be left out, and is refused. One in the history has been answered, or was
for another model: a mark says that it was there, and parts of unknown types are read for their words. What
another provider's model has thought and called within its content is read as thoughts and calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.server.protocol.provider_text import readable_text
from engine.server.protocol.unknown_fields import report_ignored

UNREADABLE = {
    **dict.fromkeys(("image", "image_url", "input_image"), "An image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "A recording"),
    **dict.fromkeys(("video", "video_url", "input_video"), "A video"),
    **dict.fromkeys(("document", "file", "input_file"), "A file"),
}
REASONING_PARTS = frozenset({"thinking", "reasoning", "redacted_thinking"})
_MAX_TURNS = 100_000  # or parts of one: more fit no context, and a look at millions takes seconds
_PLAIN = frozenset({"input_text", "output_text", "summary_text", "reasoning_text"})  # text, in other APIs
_READ = _PLAIN | REASONING_PARTS | {"text", "refusal"}  # as what they are, where they stand
_RESULTS = frozenset({"tool_result", "function_response"})  # of tools, in a user's turn


def mark_unsupported_parts(turns: Any) -> Any:
    """Turns or items as they came, with marks for what isn't text, but where it is asked about."""
    if not isinstance(turns, list) or len(turns) > _MAX_TURNS:
        return turns
    found = [
        number
        for number, turn in enumerate(turns)
        if isinstance(turn, dict)
        and isinstance(turn.get("content"), list)
        and len(turn["content"]) <= _MAX_TURNS
        and any(_is_foreign(part, turn) for part in turn["content"])
    ]
    if not found:
        return turns
    asked = _first_asked(turns)
    marked = {n: _marked(turns[n]) for n in found if n < asked or _role(turns[n]) in ("assistant", "tool")}
    return [marked.get(number, turn) for number, turn in enumerate(turns)]


def _first_asked(turns: list[Any]) -> int:
    """From which turn on the user asks: after the assistant's last, and not where its tools answered."""
    last = max((number for number, turn in enumerate(turns) if _is_assistants(turn)), default=-1)
    return len(turns) if any(_is_result(turn) for turn in turns[last + 1 :]) else last + 1


def _is_assistants(turn: Any) -> bool:
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


def _is_foreign(part: Any, turn: Any) -> bool:
    """Whether it isn't read as what it is; of no type at all it is no part."""
    kind = type_of(part)
    return bool(kind) and kind not in _READ and not (kind == "tool_use" and _role(turn) == "assistant")


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, dict) else None


def type_of(value: Any) -> str:
    """Of a part or an item; empty where it says none."""
    return str(value.get("type") or "") if isinstance(value, dict) else ""


def _marked(turn: dict[str, Any]) -> dict[str, Any]:
    content = [_mark(part) if _is_foreign(part, turn) else part for part in turn["content"]]
    return {**turn, "content": content}


def _mark(part: Any) -> dict[str, str]:
    kind = type_of(part)
    if kind not in UNREADABLE:
        report_ignored(f"content[type={kind}]", "unknown: read for its words alone")
        return {"type": "text", "text": readable_text(part, "content")}
    report_ignored(f"content[type={kind}]", "the model reads text only")
    return {"type": "text", "text": f"[{UNREADABLE[kind]} was here, which this model can't read.]"}


def read_part(part: Any) -> Any:
    """A part of text by its name in chats; what an assistant has refused is text like any other."""
    if type_of(part) == "refusal" and isinstance(part.get("refusal"), str | None):
        return {"type": "text", "text": part.get("refusal") or ""}
    return {**part, "type": "text"} if type_of(part) in _PLAIN else part


def read_assistants(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message whose thoughts and calls stand among the parts of its content."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, list):
        return message
    thoughts = [part for part in content if type_of(part) in REASONING_PARTS]
    calls = [part for part in content if type_of(part) == "tool_use"]
    if not thoughts and not calls:
        return message
    said = [part for part in content if type_of(part) not in REASONING_PARTS and type_of(part) != "tool_use"]
    read = {**message, "content": said or None}
    thought = "".join(_thought(part) for part in thoughts)
    if thought and not (message.get("reasoning") or message.get("reasoning_content")):
        read["reasoning_content"] = thought
    if calls and not message.get("tool_calls"):  # or they stand there, too
        read["tool_calls"] = [_call(part) for part in calls]
    return read


def _thought(part: Mapping[str, Any]) -> str:
    said = next((part[name] for name in ("thinking", "reasoning", "text", "summary") if part.get(name)), "")
    return str(read_reasoning(said) or "")


def read_reasoning(said: Any) -> Any:
    """Its text, where it is a part or a list of them."""
    if isinstance(said, list):
        return "".join(str(one.get("text") or "") for one in said if isinstance(one, dict)) or None
    return (_thought(said) or None) if isinstance(said, dict) else said


def _call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(part.get("input") or {}, ensure_ascii=False)
    function = {"name": part.get("name"), "arguments": arguments}
    return {"id": part.get("id"), "type": "function", "function": function}
