"""Turns a conversation's items into chat messages, the items of one assistant's turn into one. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from api.protocols.foreign_text import readable_text
from api.protocols.responses.request import Item, invalid, string_of
from api.protocols.responses.sealed import unseal
from api.protocols.responses.toolbox import custom_arguments, function_name

Message = dict[str, Any]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})
_ENCRYPTED = frozenset({"compaction", "compaction_summary", "context_compaction"})
_WITHOUT_TEXT = frozenset({"additional_tools", "mcp_list_tools"})
_REFUSED = frozenset({"compaction_trigger", "configuration_update", "item_reference"})
# Calls that another provider has run itself: their items have the results too.
_RUN_BY_SERVER = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}
)
_ARGUMENTS = ("arguments", "action", "actions", "operation", "queries", "query", "code", "input")
_RESULTS = ("output", "outputs", "results", "result", "error")


def chat_messages(items: Iterable[tuple[str, Item]], ignored: MutableMapping[str, str]) -> list[Message]:
    """`items` with their paths in the body. Raises InvalidProtocolRequest."""
    merged: list[Message] = []
    for path, item in items:
        for message in _messages(item, path, ignored):
            last = merged[-1] if merged else {}
            if _is_same_turn(last, message):
                calls = [*last.get("tool_calls", []), *message.get("tool_calls", [])]
                merged[-1] = {**last, **message, **({"tool_calls": calls} if calls else {})}
            else:
                merged.append(message)
    return [_with_content(message) for message in merged]


def _with_content(message: Message) -> Message:
    """Reasoning that was cut off has neither text nor calls: engines refuse a message without both."""
    return message if "content" in message or "tool_calls" in message else {**message, "content": ""}


def kind_of(item: Item) -> str:
    """Its type; messages may omit theirs."""
    kind = item.get("type")
    if kind is None:
        return "item_reference" if "id" in item and "role" not in item else "message"
    return str(kind)


def _is_same_turn(last: Message, message: Message) -> bool:
    """Whether both are parts of one assistant's turn: reasoning, text and calls."""
    are_assistants = message["role"] == last.get("role") == "assistant"
    return are_assistants and not any(
        message.get(name) and last.get(name) for name in ("content", "reasoning_content")
    )


def _messages(item: Item, path: str, ignored: MutableMapping[str, str]) -> list[Message]:
    kind = kind_of(item)
    if kind in _REFUSED:
        raise invalid(f"{path}.type", f"items of type {kind} are not supported")
    if kind in _WITHOUT_TEXT:
        return []
    if kind in _ENCRYPTED:
        ignored["input[].encrypted_content"] = "it is encrypted by another provider"
        return []
    if kind == "reasoning":
        return _reasoning(item, ignored)
    if kind == "message" or (item.get("role") in _ROLES and "content" in item):
        return _message(item, path)
    if kind.endswith("_output") or kind == "mcp_approval_response":
        return _output(item, kind, path)
    if kind.endswith("_call"):
        return _call(item, kind, path)
    ignored[f"input[type={kind[:40]}]"] = "unknown type: only its text is read"
    text = readable_text({name: value for name, value in item.items() if name not in ("role", "status")})
    return [{"role": "assistant", "content": text}] if text else []


def _message(item: Item, path: str) -> list[Message]:
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        raise invalid(
            f"{path}.role", f"must be system, developer, user or assistant, not {item.get('role')!r}"
        )
    content = item.get("content")
    if isinstance(content, str) or (content is None and role == "assistant"):
        return [{"role": role, "content": content or ""}]
    if not isinstance(content, list):
        raise invalid(f"{path}.content", "must be a string or a list of parts")
    parts = [_part(part, f"{path}.content[{number}]") for number, part in enumerate(content)]
    if all(isinstance(part, str) for part in parts):
        return [{"role": role, "content": "\n".join(str(part) for part in parts)}]
    as_parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": role, "content": as_parts}]


def _part(part: Any, path: str) -> str | Message:
    """A part of a message: its text, or a part as chats have it. Raises InvalidProtocolRequest."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise invalid(path, "must be an object with a `type`")
    if kind in _TEXTS:
        return string_of(part, "text", path, "")
    if kind == "refusal":
        return string_of(part, "refusal", path, "")
    if kind == "input_image":
        if part.get("image_url") is None:
            raise invalid(f"{path}.image_url", "is missing; files of a file store are not supported")
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": string_of(part, "image_url", path), **detail}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    if kind == "input_file":
        if part.get("file_data") is None:
            raise invalid(f"{path}.file_data", "is missing; files by id or URL are not supported")
        data = {"filename": part.get("filename") or "file", "file_data": string_of(part, "file_data", path)}
        return {"type": "file", "file": data}
    return readable_text(part)


def _reasoning(item: Item, ignored: MutableMapping[str, str]) -> list[Message]:
    """Its text, else the text sealed by Berth, else its summary."""
    text = readable_text(item.get("content") or [])
    if not text and item.get("encrypted_content"):
        text = unseal(item["encrypted_content"]) or ""
        if not text:
            ignored["input[].encrypted_content"] = "it is encrypted by another provider"
    text = text or readable_text(item.get("summary") or [])
    return [{"role": "assistant", "reasoning_content": text}] if text else []


def _call(item: Item, kind: str, path: str) -> list[Message]:
    call_id = item.get("call_id") or item.get("id")
    if kind == "function_call":
        given = item.get("arguments") or ""
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        name = function_name(string_of(item, "name", path), item.get("namespace"))
        return [_call_message(call_id, name, arguments or "{}")]
    if kind == "custom_tool_call":
        name = function_name(string_of(item, "name", path), item.get("namespace"))
        return [_call_message(call_id, name, custom_arguments(string_of(item, "input", path, "")))]
    given = item.get("name")  # local_shell, tool_search and the hosted tools have none
    name = given if isinstance(given, str) and given else kind.removesuffix("_call")
    messages = [_call_message(call_id, name, _arguments(item))]
    if kind in _RUN_BY_SERVER:
        text = _results(item) or str(item.get("status") or "completed")
        messages.append({"role": "tool", "tool_call_id": _id(call_id), "content": text})
    return messages


def _output(item: Item, kind: str, path: str) -> list[Message]:
    """A chat has text only in a tool's result, so images follow in a user's turn."""
    call_id = _id(item.get("call_id") or item.get("approval_request_id") or item.get("id"))
    if kind == "mcp_approval_response":
        text = "approved" if item.get("approve") else "denied"
        return [{"role": "tool", "tool_call_id": call_id, "content": text}]
    if kind == "tool_search_output":
        names = [str(tool.get("name")) for tool in item.get("tools") or () if isinstance(tool, Mapping)]
        text = f"Found: {', '.join(names)}" if names else "Found no tools."
        return [{"role": "tool", "tool_call_id": call_id, "content": text}]
    output = item.get("output")
    parts = output if isinstance(output, list) else []
    images = [
        _part(part, f"{path}.output[{number}]")
        for number, part in enumerate(parts)
        if isinstance(part, Mapping) and part.get("type") == "input_image" and part.get("image_url")
    ]
    texts = [part for part in parts if not (isinstance(part, Mapping) and part.get("type") == "input_image")]
    text = "\n".join(each for each in map(readable_text, texts) if each) if parts else _results(item)
    if images and not text:
        text = "The result is an image, which follows."
    result: Message = {"role": "tool", "tool_call_id": call_id, "content": text}
    return [result, {"role": "user", "content": images}] if images else [result]


def _results(item: Item) -> str:
    found = [item[name] for name in _RESULTS if item.get(name) is not None]
    return "\n".join(readable_text(result) for result in found)


def _arguments(item: Item) -> str:
    given = {name: item[name] for name in _ARGUMENTS if item.get(name) is not None}
    if len(given) == 1:
        [value] = given.values()
        if isinstance(value, str) and "arguments" in given:
            return value
        if isinstance(value, Mapping):
            return json.dumps({k: v for k, v in value.items() if k != "type"}, ensure_ascii=False)
    return json.dumps(given, ensure_ascii=False)


def _call_message(call_id: Any, name: str, arguments: str) -> Message:
    call = {"id": _id(call_id), "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def _id(call_id: Any) -> str:
    return call_id if isinstance(call_id, str) else ""
