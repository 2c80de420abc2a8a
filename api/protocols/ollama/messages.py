"""Messages, images and tool calls, from Ollama's shape to OpenAI's and back. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from api.protocols.base import ChatMessage

# The beginning of an image in base64, and its type.
_IMAGE_TYPES = {"/9j/": "jpeg", "R0lG": "gif", "UklGR": "webp", "Qk": "bmp"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class CalledFunction(_Part):
    name: str = ""
    arguments: dict[str, Any] | str | None = None


class ToolCall(_Part):
    id: str | None = None
    function: CalledFunction


class Message(_Part):
    """One of Ollama's messages."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _OpenCalls:
    """The calls of a conversation that have no result yet: a result may name its call only by the tool."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []  # id, tool
        self._num_calls = 0

    def add(self, call: ToolCall) -> str:
        """The call's id, which may be made here."""
        call_id = call.id or f"call_{self._num_calls}"
        self._num_calls += 1
        self._open.append((call_id, call.function.name))
        return call_id

    def close(self, message: Message) -> str:
        """The id of the call that a result belongs to: the named one, else the oldest, of its tool if any."""
        wanted, tool = message.tool_call_id, message.tool_name or message.name
        fitting = [entry for entry in self._open if entry[0] == wanted or (not wanted and entry[1] == tool)]
        found = next(iter(fitting or ([] if wanted else self._open)), None)
        if found is not None:
            self._open.remove(found)
            return found[0]
        return wanted or f"call_{self._num_calls}"


def to_openai(messages: Sequence[Message]) -> list[ChatMessage]:
    """OpenAI's messages."""
    calls = _OpenCalls()
    return [_message(message, calls) for message in messages]


def _message(message: Message, calls: _OpenCalls) -> ChatMessage:
    role = message.role.lower()
    made: dict[str, Any] = {"role": role, "content": with_images(message.content or "", message.images)}
    if message.thinking:
        made["reasoning_content"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = [_call(call, calls.add(call)) for call in message.tool_calls]
    if role == "tool":
        made["tool_call_id"] = calls.close(message)
        name = message.tool_name or message.name
    else:
        name = message.name
    return made | {"name": name} if name else made


def _call(call: ToolCall, call_id: str) -> dict[str, Any]:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    function = {"name": call.function.name, "arguments": text}
    return {"id": call_id, "type": "function", "function": function}


def with_images(text: str, images: Iterable[str] | None) -> str | list[dict[str, Any]]:
    """A message's content; images are base64, which becomes a data URL."""
    parts = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images or ()]
    if not parts:
        return text
    return [*([{"type": "text", "text": text}] if text else []), *parts]


def _data_url(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{image}"


def unknown_fields(messages: Sequence[Message]) -> dict[str, str]:
    """The fields of messages that nobody knows, for a warning."""
    names = {name: None for message in messages for name in message.model_extra or {}}
    return {f"messages[].{name}": "unknown field" for name in names}


class CallPieces:
    """Collects the tool calls of a response, whose arguments arrive in pieces of JSON."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, pieces: Sequence[Mapping[str, Any]]) -> None:
        """Pieces of OpenAI's `tool_calls`, whole or of a stream."""
        for number, piece in enumerate(pieces):
            index = piece.get("index")
            call = self._calls.setdefault(number if index is None else index, {"arguments": ""})
            function = piece.get("function") or {}
            if piece.get("id"):
                call["id"] = piece["id"]
            if function.get("name"):
                call["name"] = function["name"]
            call["arguments"] += function.get("arguments") or ""

    def take(self) -> tuple[list[dict[str, Any]], str]:
        """Ollama's `tool_calls`, and the text of those that are none, as their arguments aren't an object."""
        made, broken = [], []
        for index, call in sorted(self._calls.items()):
            arguments = _object(call["arguments"])
            if arguments is None:
                broken.append(call["arguments"])
                continue
            function = {"index": index, "name": call.get("name", ""), "arguments": arguments}
            made.append(({"id": call["id"]} if "id" in call else {}) | {"function": function})
        self._calls.clear()
        return made, "".join(broken)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
