"""One request's conversation: the items of earlier responses, then its own; as a chat. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from api.protocols.responses.items import chat_messages, kind_of
from api.protocols.responses.request import InputRequest, Item, invalid
from api.protocols.responses.store import OwnedResponses, UnknownResponse
from api.protocols.responses.toolbox import Toolbox

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "tool_search_call": "tsc",
    "local_shell_call": "lsh",
    "reasoning": "rs",
}


class Conversation:
    """The items, and the tools they may add."""

    def __init__(self, request: InputRequest, stored: OwnedResponses, ignored: dict[str, str]) -> None:
        """`ignored`: gets what has no effect. Raises InvalidProtocolRequest."""
        self.history = _history(request, stored)
        self.inputs = list(_inputs(request, stored))
        self.toolbox = Toolbox(ignored)
        self._request = request
        self._ignored = ignored
        self.toolbox.add(request.tools or [], "tools", replaces=False)
        for path, item in self._items():
            if kind_of(item) in ("additional_tools", "tool_search_output"):
                self.toolbox.add(item.get("tools") or [], f"{path}.tools", replaces=True)

    def chat_fields(self) -> dict[str, Any]:
        """`messages` and the fields about tools. Raises InvalidProtocolRequest."""
        request = self._request
        messages = chat_messages(self._items(), self._ignored)
        if request.instructions:  # they are for this response alone, and no part of the history
            messages = [{"role": "system", "content": request.instructions}, *messages]
        if not messages:
            raise invalid("input", "there is no text for the model to read")
        choice = self.toolbox.choose(request.tool_choice)  # first: it may remove tools
        fields: dict[str, Any] = {"messages": _with_one_system(messages)}
        if functions := self.toolbox.functions:
            fields["tools"] = functions
            if choice is not None:
                fields["tool_choice"] = choice
            if request.parallel_tool_calls is False:
                fields["parallel_tool_calls"] = False
        return fields

    def _items(self) -> Iterator[tuple[str, Item]]:
        yield from (("previous_response_id", item) for item in self.history)
        yield from ((f"input[{number}]", item) for number, item in enumerate(self.inputs))


def new_id(kind: str) -> str:
    """For an item of this type."""
    return f"{_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"


def _history(request: InputRequest, stored: OwnedResponses) -> list[Item]:
    if request.previous_response_id is None:
        return []
    try:
        return list(stored.get(request.previous_response_id).items)
    except UnknownResponse as error:
        param = "previous_response_id"
        raise invalid(param, str(error), status=404, code="response_not_found") from None


def _inputs(request: InputRequest, stored: OwnedResponses) -> Iterator[Item]:
    """The request's own items, each with an id; references are replaced by what they refer to."""
    if isinstance(request.input, str):
        content = [{"type": "input_text", "text": request.input}]
        yield {"id": new_id("message"), "type": "message", "role": "user", "content": content}
        return
    for number, item in enumerate(request.input or ()):
        kind = kind_of(item)
        if kind == "item_reference":
            yield _referred(item, f"input[{number}].id", stored)
        else:
            yield item if isinstance(item.get("id"), str) else {**item, "id": new_id(kind)}


def _referred(item: Item, path: str, stored: OwnedResponses) -> Item:
    found = stored.item(str(item.get("id")))
    if found is None:
        problem = (
            f"item {str(item.get('id'))[:80]!r} not found: its response is not stored; send the item itself"
        )
        raise invalid(path, problem, status=404, code="item_not_found")
    return found


def _with_one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages at the beginning as one: many chat templates take no second one."""
    first: list[str] = []
    for message in messages:
        if message["role"] != "system" or not isinstance(message["content"], str):
            break
        first.append(message["content"])
    if len(first) < 2:
        return messages
    return [{"role": "system", "content": "\n\n".join(first)}, *messages[len(first) :]]


def text_format(text: Mapping[str, Any] | None) -> dict[str, Any]:
    """`text.format` as a chat's `response_format`. Raises InvalidProtocolRequest."""
    form = (text or {}).get("format")
    if form is None:
        return {}
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if kind != "json_schema":
        raise invalid("text.format.type", f"must be text, json_object or json_schema, not {kind!r}")
    if not isinstance(form.get("schema"), Mapping):
        raise invalid("text.format.schema", "must be a JSON schema")
    names = ("name", "schema", "strict", "description")
    schema = {name: form[name] for name in names if form.get(name) is not None}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", **schema}}}
