"""From the words of Responses to those of chat completions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.server.body import check
from engine.server.protocol import ChatBody
from engine.server.responses.bodies import (
    AS_IN_CHATS,
    FunctionCallItem,
    FunctionChoice,
    FunctionOutputItem,
    InputText,
    Item,
    JsonSchemaText,
    MessageItem,
    OutputText,
    ReasoningItem,
    ResponsesBody,
)
from engine.server.tool_paths import without_function

_OUR_PARAMS = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
    "tool_choice.function.name": "tool_choice.name",
}


def to_chat(body: ResponsesBody, history: Sequence[Mapping[str, Any]]) -> ChatBody:
    """The same request as a chat, after what was said before. Raises InvalidRequest."""
    messages = [*history, *input_messages(body)]
    if body.instructions is not None:  # they hold for this response alone, and are no part of the history
        messages = [{"role": "system", "content": body.instructions}, *messages]
    fields: dict[str, Any] = {name: getattr(body, name) for name in AS_IN_CHATS}
    fields |= {
        "model": body.model,
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _response_format(body),
    }
    if body.tools:
        fields["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools
        ]
    choice = body.tool_choice
    if isinstance(choice, FunctionChoice):
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice is not None:
        fields["tool_choice"] = choice
    try:
        return check(fields, ChatBody)
    except InvalidRequest as error:
        raise renamed(error) from error


def renamed(error: InvalidRequest) -> InvalidRequest:
    """The same complaint, its field as Responses call it."""
    error = without_function(error, parameters="parameters")
    param = error.param or ""
    for ours, theirs in sorted(_OUR_PARAMS.items(), key=lambda one: -len(one[0])):
        if param == ours or param.startswith((f"{ours}.", f"{ours}[")):
            name = theirs + param[len(ours) :]
            said = error.message.replace(param, name)
            if ours.endswith(".schema"):  # a schema's errors say the place, and then the word there
                said = said.replace(ours, theirs)
            return type(error)(said, param=name)
    return error


def input_messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """The input as a chat's messages: what one turn of an assistant consists of becomes one message."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    return merge([_message(item) for item in body.input])


def merge(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """An assistant's thoughts, words and calls that follow each other, as one message."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        last = merged[-1] if merged else {}
        together = message["role"] == last.get("role") == "assistant"
        if together and not (message.get("content") and last.get("content")):
            calls = [*last.get("tool_calls", []), *message.get("tool_calls", [])]
            merged[-1] = {**last, **message, **({"tool_calls": calls} if calls else {})}
        else:
            merged.append(message)
    return merged


def _message(item: Item) -> dict[str, Any]:
    match item:
        case MessageItem():
            return {"role": item.role, "content": _text(item.content)}
        case FunctionCallItem():
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": [call]}
        case FunctionOutputItem():
            return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
        case ReasoningItem():
            thought = "".join(part.text for part in item.content or [])
            return {"role": "assistant", "reasoning_content": thought}


def _text(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _response_format(body: ResponsesBody) -> dict[str, Any] | None:
    form = body.text.format if body.text else None
    if form is None:
        return None
    if not isinstance(form, JsonSchemaText):
        return {"type": form.type}
    schema = {"name": form.name, "schema": form.schema_, "strict": form.strict}
    return {"type": "json_schema", "json_schema": schema}
