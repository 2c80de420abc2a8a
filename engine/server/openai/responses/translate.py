"""From a request for a response to the chat that answers it, and from the chat's complaints to its words."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.server.generation.response_store import TenantResponses
from engine.server.openai.responses.bodies import (
    AS_IN_CHATS,
    COUNTED_AS_IN_CHATS,
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

_OUR_PARAMS = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
    "tool_choice.function.name": "tool_choice.name",
}
_MESSAGE = re.compile(r"messages\[(\d+)\]")
_TOOL = re.compile(r"tools\[(\d+)\](?:\.function)?")
_CUSTOM_PATTERN = ".parameters.properties.input.pattern"


class Asked:
    """A request with the conversation that it goes on with, as items: earlier ones, then its own."""

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
        """Tools that the conversation has brought count as well; the tool choice, as a chat has it."""
        self.toolbox.add(self._body.tools or (), "tools", replaces=False)
        for path, item in zip(self._paths, self.items, strict=True):
            if isinstance(item, AdditionalToolsItem | ToolSearchOutputItem):
                self.toolbox.add(item.tools, f"{path}.tools", replaces=True)
        return self.toolbox.choose(self._body.tool_choice)

    def chat(self, *, num_left_out: int = 0) -> ChatBody:
        """The same as a chat. `num_left_out`: of the earliest items, but for those that instruct.

        Raises InvalidRequest.
        """
        body = self._body
        numbered = list(zip(self._paths, self.items, strict=True))
        instructing = [one for one in numbered[:num_left_out] if _instructs(one[1])]
        messages, self._origins = to_messages([*instructing, *numbered[num_left_out:]])
        if body.instructions is not None:  # they hold for this response alone, and are no part of the history
            messages = [{"role": "system", "content": body.instructions}, *messages]
            self._origins = ["instructions", *self._origins]
        self._tool_paths = self.toolbox.paths
        names = AS_IN_CHATS if isinstance(body, ResponsesBody) else COUNTED_AS_IN_CHATS
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
            fields |= {"max_completion_tokens": body.max_output_tokens, "stream": body.stream}
        return check_derived(fields, ChatBody)

    @property
    def turns(self) -> list[int]:
        """Before which items the conversation may be cut: where users speak, but for the first time."""
        spoken = [n for n, item in enumerate(self.items) if isinstance(item, MessageItem)]
        return [n for n in spoken if self.items[n].role == "user"][1:]

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The same complaint, its field as the client has called it."""
        param = error.param or ""
        name = self._own_name(param)
        if name == param:
            return error
        said = error.message.replace(param, name or "input")
        place, own_place = param.rpartition(".")[0], name.rpartition(".")[0]
        if "." in place:  # a schema's errors say the place, and then the word there
            said = said.replace(place, own_place)
        return error.renamed(said, name)

    def _own_name(self, param: str) -> str:
        for pattern, paths in ((_MESSAGE, self._origins), (_TOOL, self._tool_paths)):
            found = pattern.match(param)
            if found is not None and int(found[1]) < len(paths):
                rest = "" if pattern is _MESSAGE else param[found.end() :]
                rest = rest.replace(_CUSTOM_PATTERN, ".format.definition")
                return paths[int(found[1])] + rest
        for ours, theirs in sorted(_OUR_PARAMS.items(), key=lambda one: -len(one[0])):
            if param == ours or param.startswith((f"{ours}.", f"{ours}[")):
                return theirs + param[len(ours) :]
        return param


def _own_items(body: InputTokensBody, store: TenantResponses) -> Iterator[Any]:
    """The request's own items, each with an id; references are looked up."""
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


def _instructs(item: Any) -> bool:
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
    """The next cut to try, by halves; None once the least that fits is known."""
    low, high = 0, len(turns)
    while low < high:
        middle = (low + high) // 2
        if turns[middle] not in fits:
            return turns[middle]
        low, high = (low, middle) if fits[turns[middle]] else (middle + 1, high)
    return None
