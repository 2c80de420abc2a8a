"""Converts a conversation's items to chat messages, merging the items of one assistant turn. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from engine.server.openai.responses.items import (
    AdditionalToolsItem,
    CallOutputItem,
    CustomCallItem,
    ForeignItem,
    FunctionCallItem,
    MessageItem,
    ReasoningItem,
    ToolSearchCallItem,
    ToolSearchOutputItem,
)
from engine.server.openai.responses.provider_items import output_text, provider_messages
from engine.server.openai.responses.sealed import unseal
from engine.server.openai.responses.toolbox import custom_arguments, function_name
from engine.server.protocol.unknown_fields import report_ignored

_Message = dict[str, Any]


def to_messages(items: Iterable[tuple[str, Any]]) -> tuple[list[_Message], list[str]]:
    """The messages, and for each the path of its first item."""
    merged: list[_Message] = []
    origins: list[str] = []
    for path, item in items:
        for message in _messages(item):
            last = merged[-1] if merged else {}
            if _same_turn(last, message):
                calls = [*last.get("tool_calls", []), *message.get("tool_calls", [])]
                merged[-1] = {**last, **message, **({"tool_calls": calls} if calls else {})}
            else:
                merged.append(message)
                origins.append(path)
    return merged, origins


def _same_turn(last: _Message, message: _Message) -> bool:
    """Whether both are parts of one assistant turn: reasoning, text and calls."""
    both_assistant = message["role"] == last.get("role") == "assistant"
    return both_assistant and not any(
        message.get(name) and last.get(name) for name in ("content", "reasoning_content")
    )


def _messages(item: Any) -> list[_Message]:
    match item:
        case MessageItem():
            return [{"role": item.role, "content": _text(item.content)}]
        case FunctionCallItem():
            arguments = item.arguments if isinstance(item.arguments, str) else _json(item.arguments)
            return [_call(item.call_id or item.id, function_name(item.name, item.namespace), arguments)]
        case CustomCallItem():
            name = function_name(item.name, item.namespace)
            return [_call(item.call_id or item.id, name, custom_arguments(item.input))]
        case CallOutputItem():
            parts = item.output
            output = [part.model_dump() for part in parts] if isinstance(parts, list) else parts
            return [{"role": "tool", "tool_call_id": item.call_id, "content": output_text(output)}]
        case ToolSearchCallItem():
            arguments = item.arguments if isinstance(item.arguments, str) else _json(item.arguments)
            return [_call(item.call_id or item.id, "tool_search", arguments)]
        case ToolSearchOutputItem():
            found = ", ".join(str(tool.name) for tool in item.tools if hasattr(tool, "name"))
            text = f"Found: {found}" if found else "Found no tools."
            return [{"role": "tool", "tool_call_id": item.call_id, "content": text}]
        case ReasoningItem():
            reasoning = _reasoning_text(item)
            return [{"role": "assistant", "reasoning_content": reasoning}] if reasoning else []
        case ForeignItem():
            return provider_messages(item)
        case AdditionalToolsItem():
            return []
    raise TypeError(f"not a conversation item: {item!r}")


def _reasoning_text(item: ReasoningItem) -> str:
    """Its text, else the text sealed by this server, else its summary."""
    output = "".join(part.text for part in item.content or [])
    if output:
        return output
    unsealed = unseal(item.encrypted_content) if item.encrypted_content else None
    if unsealed is not None:
        return unsealed
    if item.encrypted_content:
        report_ignored("input[].encrypted_content", "it is encrypted by another provider")
    return "\n\n".join(part.text for part in item.summary or [])


def _call(call_id: str | None, name: str, arguments: str) -> _Message:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def _json(value: Any) -> str:
    return json.dumps({} if value is None else value, ensure_ascii=False)


def _text(content: str | list[Any]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
