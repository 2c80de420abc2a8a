"""Items of another provider's conversation, read for what they say: as calls, and as what came of them.

What can't be read (an image, a text encrypted by its vendor) is left out and named in a warning. Pure but for
those warnings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.server.openai.responses.items import ForeignItem, is_known
from engine.server.protocol.provider_text import readable_text
from engine.server.protocol.unknown_fields import report_ignored

IMAGE_MARK = "[image]"
FILE_MARK = "[file]"

_Message = dict[str, Any]

_SILENT = frozenset({"mcp_list_tools"})  # says which tools a vendor's server had
_ENCRYPTED = frozenset({"compaction", "compaction_summary", "context_compaction"})
_ARGUMENTS = ("arguments", "action", "actions", "operation", "queries", "query", "code", "input")
_RESULTS = ("output", "outputs", "results", "result", "error")
_ABOUT = frozenset({"role", "status", "phase"})
_RUN_BY_SERVER = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}
)


def foreign_messages(item: ForeignItem) -> list[_Message]:
    """As a chat's messages: none, a call, an output, or both where a server has run the tool itself."""
    if item.type in _SILENT:
        return []
    if item.type in _ENCRYPTED:
        report_ignored("input[].encrypted_content", "another provider's, which can't be read here")
        return []
    if not is_known(item):
        return _words(item)
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


def _words(item: ForeignItem) -> list[_Message]:
    report_ignored(f"input[type={item.type}]", "unknown: read for its words alone")
    fields = {name: value for name, value in item.fields.items() if name not in _ABOUT}
    said = readable_text(fields, "input[]")
    return [{"role": "assistant", "content": said}] if said else []


def output_text(value: Any) -> str:
    """A tool's output in words; images and files are marks."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(output_text(part) for part in value)
    return _object_text(value) if isinstance(value, Mapping) else json.dumps(value)


def _object_text(value: Mapping[str, Any]) -> str:
    mark = _mark(value)
    if mark is not None:
        report_ignored("input[].output", "images and files can't be read here: a mark stands for each")
        return mark
    for word in ("text", "refusal", "logs"):
        if isinstance(value.get(word), str):
            return str(value[word])
    return json.dumps(value, ensure_ascii=False, default=str)


def _mark(value: Mapping[str, Any]) -> str | None:
    kind = str(value.get("type") or "")
    if "image" in kind or "screenshot" in kind or "image_url" in value:
        return IMAGE_MARK
    return FILE_MARK if kind in ("input_file", "file", "input_audio") or "file_data" in value else None


def _results(item: ForeignItem) -> str:
    found = [item.fields[word] for word in _RESULTS if item.fields.get(word) is not None]
    if item.type == "image_generation_call":
        return output_text([{"type": "image"} for _ in found])
    said = "\n".join(output_text(result) for result in found)
    status = item.fields.get("status")
    return said or (str(status) if item.type.endswith("_output") and status else "")


def _name(item: ForeignItem) -> str:
    name = item.fields.get("name")
    return name if isinstance(name, str) and name else item.type.removesuffix("_call")


def _arguments(fields: Mapping[str, Any]) -> str:
    given = {word: fields[word] for word in _ARGUMENTS if fields.get(word) is not None}
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
