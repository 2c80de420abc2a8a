"""Parts of a chat's messages and of a conversation's items that hold no plain text. Pure but for warnings.

A picture that is asked about can't be left out, and is refused. One in the history has been answered, or was
for another model: a mark says that it was there. What another provider's model has thought and called within
its content is read as thoughts and calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.server.unknown_fields import report_ignored

_UNREADABLE = {
    **dict.fromkeys(("image", "image_url", "input_image"), "An image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "A recording"),
    **dict.fromkeys(("video", "video_url", "input_video"), "A video"),
    **dict.fromkeys(("document", "file", "input_file"), "A file"),
}
_THOUGHTS = frozenset({"thinking", "reasoning", "redacted_thinking"})
_MAX_TURNS = 100_000  # or parts of one: more fit no context, and a look at millions takes seconds
_PLAIN = frozenset({"input_text", "output_text"})  # what other APIs call a part of text


def mark_unreadable(turns: Any) -> Any:
    """Turns or items as they came, with marks for what isn't text, but where it is asked about."""
    if not isinstance(turns, list) or len(turns) > _MAX_TURNS:
        return turns
    found = [
        number
        for number, turn in enumerate(turns)
        if isinstance(turn, dict)
        and isinstance(turn.get("content"), list)
        and len(turn["content"]) <= _MAX_TURNS
        and any(_kind(part) in _UNREADABLE for part in turn["content"])
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
    return _role(turn) == "assistant" or _kind(turn).endswith("_call") or _kind(turn) == "reasoning"


def _is_result(turn: Any) -> bool:
    return _role(turn) in ("tool", "function") or _kind(turn).endswith("_output")


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, dict) else None


def _kind(value: Any) -> str:
    return str(value.get("type") or "") if isinstance(value, dict) else ""


def _marked(turn: dict[str, Any]) -> dict[str, Any]:
    content = [_mark(part) if _kind(part) in _UNREADABLE else part for part in turn["content"]]
    return {**turn, "content": content}


def _mark(part: Any) -> dict[str, str]:
    kind = _kind(part)
    report_ignored(f"content[type={kind}]", "the model reads text only")
    return {"type": "text", "text": f"[{_UNREADABLE[kind]} was here, which this model can't read.]"}


def read_part(part: Any) -> Any:
    """A part of text by its name in chats; what an assistant has refused is text like any other."""
    if _kind(part) == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    return {**part, "type": "text"} if _kind(part) in _PLAIN else part


def read_assistants(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message whose thoughts and calls stand among the parts of its content."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, list):
        return message
    thoughts = [part for part in content if _kind(part) in _THOUGHTS]
    calls = [part for part in content if _kind(part) == "tool_use"]
    if not thoughts and not calls:
        return message
    said = [part for part in content if _kind(part) not in _THOUGHTS and _kind(part) != "tool_use"]
    read = {**message, "content": said or None}
    thought = "".join(_thought(part) for part in thoughts)
    if thought and not (message.get("reasoning") or message.get("reasoning_content")):
        read["reasoning_content"] = thought
    if calls and not message.get("tool_calls"):  # or they stand there, too
        read["tool_calls"] = [_call(part) for part in calls]
    return read


def _thought(part: Mapping[str, Any]) -> str:
    said = next((part[name] for name in ("thinking", "reasoning", "text") if part.get(name)), "")
    if isinstance(said, list):
        return "".join(str(one.get("text") or "") for one in said if isinstance(one, dict))
    return said if isinstance(said, str) else ""


def _call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(part.get("input") or {}, ensure_ascii=False)
    function = {"name": part.get("name"), "arguments": arguments}
    return {"id": part.get("id"), "type": "function", "function": function}
