"""Translates Responses requests to chat requests, and errors back."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.server.generation.response_store import TenantResponses
from engine.server.openai.responses.bodies import (
    CHAT_FIELDS,
    INPUT_CHAT_FIELDS,
    InputTokensBody,
    JsonSchemaText,
    ResponsesBody,
)
from engine.server.openai.responses.history import to_messages
from engine.server.openai.responses.items import (
    AdditionalToolsItem,
    MessageItem,
    ReferenceItem,
    ToolSearchOutputItem,
    id_prefix,
)
from engine.server.openai.responses.toolbox import Toolbox
from engine.server.protocol.body_reader import check_derived
from engine.server.protocol.chat_body import ChatBody

_RESPONSES_PARAMS = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
    "tool_choice.function.name": "tool_choice.name",
}
_OTHER_FIELD = re.compile(r"\b(max_completion_tokens|response_format)\b")
_MESSAGE_PATH = re.compile(r"messages\[(\d+)\]")
_TOOL_PATH = re.compile(r"tools\[(\d+)\](?:\.function)?")
_CUSTOM_PATTERN = ".parameters.properties.input.pattern"


class ConversationRequest:
    """A request with its whole conversation: the items of earlier responses, then its own."""

    def __init__(self, body: InputTokensBody, store: TenantResponses) -> None:
        """Raises UnknownResponse and UnknownItem."""
        earlier = body.previous_response_id
        history = [] if earlier is None else store.get(earlier, "previous_response_id").items
        own = list(_own_items(body, store))
        self.items: list[Any] = [*history, *own]
        self.toolbox = Toolbox()
        self._body = body
        self._paths = ["previous_response_id"] * len(history) + [f"input[{n}]" for n in range(len(own))]
        self._origins: list[str] = []
        self._tool_paths: list[str] = []
        self._choice = self._read_tools()

    def _read_tools(self) -> Any:
        """Collect the tools, including those added by items. Returns the tool choice in chat format."""
        self.toolbox.add(self._body.tools or (), "tools", replaces=False)
        for path, item in zip(self._paths, self.items, strict=True):
            if isinstance(item, AdditionalToolsItem | ToolSearchOutputItem):
                self.toolbox.add(item.tools, f"{path}.tools", replaces=True)
        return self.toolbox.choose(self._body.tool_choice)

    def chat(self, *, num_dropped: int = 0) -> ChatBody:
        """The request as a chat. `num_dropped`: the number of oldest items to drop, except instructions.

        Raises InvalidRequest.
        """
        body = self._body
        numbered = list(zip(self._paths, self.items, strict=True))
        instructions = [entry for entry in numbered[:num_dropped] if _is_instruction(entry[1])]
        messages, self._origins = to_messages([*instructions, *numbered[num_dropped:]])
        if body.instructions is not None:  # they apply to this response only and are not part of the history
            messages = [{"role": "system", "content": body.instructions}, *messages]
            self._origins = ["instructions", *self._origins]
        self._tool_paths = self.toolbox.paths
        names = CHAT_FIELDS if isinstance(body, ResponsesBody) else INPUT_CHAT_FIELDS
        fields: dict[str, Any] = {name: getattr(body, name) for name in names}
        fields |= {
            "model": body.model,
            "messages": messages,
            "reasoning_effort": body.reasoning.effort if body.reasoning else None,
            "response_format": _response_format(body),
            "tools": self.toolbox.functions or None,
            "tool_choice": self._choice,
        }
        if isinstance(body, ResponsesBody):
            fields["max_completion_tokens"] = body.max_output_tokens
        return check_derived(fields, ChatBody)

    @property
    def turns(self) -> list[int]:
        """The items before which the conversation may be cut: user messages except the first."""
        from_messages = [n for n, item in enumerate(self.items) if isinstance(item, MessageItem)]
        return [n for n in from_messages if self.items[n].role == "user"][1:]

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The same error with the client's name of the field."""
        param = error.param or ""
        name = self._client_name(param)
        if name == param:  # the message may name another field too
            message = _OTHER_FIELD.sub(lambda found: _RESPONSES_PARAMS[found[0]], error.message)
            return error.renamed(message, error.param)
        message = error.message.replace(param, name or "input")
        place, own_place = param.rpartition(".")[0], name.rpartition(".")[0]
        if "." in place:  # schema errors name the place and the keyword separately
            message = message.replace(place, own_place)
        return error.renamed(message, name)

    def _client_name(self, param: str) -> str:
        for pattern, paths in ((_MESSAGE_PATH, self._origins), (_TOOL_PATH, self._tool_paths)):
            found = pattern.match(param)
            if found is not None and int(found[1]) < len(paths):
                rest = "" if pattern is _MESSAGE_PATH else param[found.end() :]
                rest = rest.replace(_CUSTOM_PATTERN, ".format.definition")
                return paths[int(found[1])] + rest
        for ours, theirs in sorted(_RESPONSES_PARAMS.items(), key=lambda names: -len(names[0])):
            if param == ours or param.startswith((f"{ours}.", f"{ours}[")):
                return theirs + param[len(ours) :]
        return param


def _own_items(body: InputTokensBody, store: TenantResponses) -> Iterator[Any]:
    """The request's own items, each with an id; references are resolved."""
    if isinstance(body.input, str):
        yield MessageItem(id=_new_id("message"), role="user", content=body.input)
        return
    for number, item in enumerate(body.input or ()):
        if isinstance(item, ReferenceItem):
            yield store.get_item(item.id, f"input[{number}].id")
        else:
            yield item if item.id else item.model_copy(update={"id": _new_id(item.type)})


def _new_id(kind: str) -> str:
    return f"{id_prefix(kind)}_{uuid.uuid4().hex}"


def _is_instruction(item: Any) -> bool:
    return isinstance(item, MessageItem) and item.role in ("system", "developer")


def _response_format(body: InputTokensBody) -> dict[str, Any] | None:
    form = body.text.format if body.text else None
    if form is None:
        return None
    if not isinstance(form, JsonSchemaText):
        return {"type": form.type}
    schema = {"name": form.name, "schema": form.schema_, "strict": form.strict}
    return {"type": "json_schema", "json_schema": schema}


def fitting_cut(turns: Sequence[int], fits: dict[int, bool]) -> int | None:
    """The next cut to try in a binary search; None once the smallest cut that fits is known."""
    low, high = 0, len(turns)
    while low < high:
        middle = (low + high) // 2
        if turns[middle] not in fits:
            return turns[middle]
        low, high = (low, middle) if fits[turns[middle]] else (middle + 1, high)
    return None
