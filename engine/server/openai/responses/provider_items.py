"""Converts items of another provider's conversation to chat messages: calls and their outputs.

Unreadable content (images, text encrypted by the provider) is dropped with a warning. Pure, but for warnings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.server.openai.responses.items import ForeignItem, is_known
from engine.server.protocol.provider_text import readable_text
from engine.server.protocol.unknown_fields import report_ignored

IMAGE_PLACEHOLDER = "[image]"
FILE_PLACEHOLDER = "[file]"

_Message = dict[str, Any]

_WITHOUT_TEXT = frozenset({"mcp_list_tools"})  # lists the tools of a provider's server
_ENCRYPTED = frozenset({"compaction", "compaction_summary", "context_compaction"})
_ARGUMENTS = ("arguments", "action", "actions", "operation", "queries", "query", "code", "input")
_RESULTS = ("output", "outputs", "results", "result", "error")
_METADATA = frozenset({"role", "status", "phase"})
_RUN_BY_SERVER = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}
)


def provider_messages(item: ForeignItem) -> list[_Message]:
    """The item as chat messages: none, a call, an output, or both if a server ran the tool."""
    if item.type in _WITHOUT_TEXT:
        return []
    if item.type in _ENCRYPTED:
        report_ignored("input[].encrypted_content", "it is encrypted by another provider")
        return []
    if not is_known(item):
        return _text_message(item)
    fields = item.fields
    call_id = fields.get("call_id") or fields.get("approval_request_id") or item.id
    if item.type.endswith("_output"):
        return [_output(call_id, _results(item))]
    if item.type == "mcp_approval_response":
        decision = "approved" if fields.get("approve") else "denied"
        reason = fields.get("reason")
        return [_output(call_id, f"{decision}: {reason}" if reason else decision)]
    messages = [_call(call_id, _name(item), _arguments(fields))]
    if item.type in _RUN_BY_SERVER:
        messages.append(_output(call_id, _results(item) or str(fields.get("status") or "completed")))
    return messages


def _text_message(item: ForeignItem) -> list[_Message]:
    report_ignored(f"input[type={item.type}]", "unknown type: only its text is read")
    fields = {name: value for name, value in item.fields.items() if name not in _METADATA}
    text = readable_text(fields, "input[]")
    return [{"role": "assistant", "content": text}] if text else []


def output_text(value: Any) -> str:
    """A tool's output as text; images and files become placeholders."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(output_text(part) for part in value)
    return _object_text(value) if isinstance(value, Mapping) else json.dumps(value)


def _object_text(value: Mapping[str, Any]) -> str:
    placeholder = _placeholder(value)
    if placeholder is not None:
        report_ignored("input[].output", "images and files are replaced by placeholders")
        return placeholder
    for name in ("text", "refusal", "logs"):
        if isinstance(value.get(name), str):
            return str(value[name])
    return json.dumps(value, ensure_ascii=False, default=str)


def _placeholder(value: Mapping[str, Any]) -> str | None:
    kind = str(value.get("type") or "")
    if "image" in kind or "screenshot" in kind or "image_url" in value:
        return IMAGE_PLACEHOLDER
    return FILE_PLACEHOLDER if kind in ("input_file", "file", "input_audio") or "file_data" in value else None


def _results(item: ForeignItem) -> str:
    found = [item.fields[name] for name in _RESULTS if item.fields.get(name) is not None]
    if item.type == "image_generation_call":
        return output_text([{"type": "image"} for _ in found])
    text = "\n".join(output_text(result) for result in found)
    status = item.fields.get("status")
    return text or (str(status) if item.type.endswith("_output") and status else "")


def _name(item: ForeignItem) -> str:
    name = item.fields.get("name")
    return name if isinstance(name, str) and name else item.type.removesuffix("_call")


def _arguments(fields: Mapping[str, Any]) -> str:
    given = {name: fields[name] for name in _ARGUMENTS if fields.get(name) is not None}
    if not given and isinstance(fields.get("revised_prompt"), str):
        given = {"prompt": fields["revised_prompt"]}
    if len(given) == 1:
        [value] = given.values()
        if isinstance(value, str) and "arguments" in given:
            return value
        if isinstance(value, Mapping):
            return json.dumps(value, ensure_ascii=False)
    return json.dumps(given, ensure_ascii=False)


def _call(call_id: Any, name: str, arguments: str) -> _Message:
    call = {"id": _id(call_id), "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def _output(call_id: Any, text: str) -> _Message:
    return {"role": "tool", "tool_call_id": _id(call_id), "content": text}


def _id(call_id: Any) -> str | None:
    return call_id if isinstance(call_id, str) else None
