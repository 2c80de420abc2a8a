"""From Anthropic's words to those of chat completions. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.server.messages.bodies import (
    AnthropicMessage,
    Block,
    CountBody,
    MessagesBody,
    TextBlock,
    ThinkingBlock,
    ThinkingOn,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from engine.server.protocol import ChatBody
from engine.server.tool_paths import without_function

_OUR_PARAMS = {
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
    "tool_choice.function.name": "tool_choice.name",
}


def to_chat(body: CountBody) -> ChatBody:
    """The same request as a chat. Raises InvalidRequest, with `param` as Anthropic calls it."""
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": _messages(body),
        "chat_template_kwargs": {"enable_thinking": isinstance(body.thinking, ThinkingOn)},
    }
    if body.messages[-1].role == "assistant":  # the answer's beginning, to be gone on with
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if body.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                    "strict": tool.strict,
                },
            }
            for tool in body.tools
        ]
    fields |= _tool_choice(body)
    if isinstance(body, MessagesBody):
        fields |= _sampling(body)
    if isinstance(body.thinking, ThinkingOn):
        fields["thinking_token_budget"] = body.thinking.budget_tokens
    try:
        return ChatBody.model_validate(fields)
    except InvalidRequest as error:
        raise renamed(error) from error


def renamed(error: InvalidRequest) -> InvalidRequest:
    """The same complaint, its field as Anthropic calls it."""
    error = without_function(error, parameters="input_schema")
    if error.param not in _OUR_PARAMS:
        return error
    return type(error)(error.message, param=_OUR_PARAMS[error.param])


def _sampling(body: MessagesBody) -> dict[str, Any]:
    return {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stream": body.stream,
    }


def _tool_choice(body: CountBody) -> dict[str, Any]:
    choice = body.tool_choice
    if choice is None:
        return {}
    parallel = not getattr(choice, "disable_parallel_tool_use", False)
    if isinstance(choice, ToolChoice):
        named = {"type": "function", "function": {"name": choice.name}}
        return {"tool_choice": named, "parallel_tool_calls": parallel}
    words = {"auto": "auto", "any": "required", "none": "none"}
    return {"tool_choice": words[choice.type], "parallel_tool_calls": parallel}


def _messages(body: CountBody) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": _text(body.system)}] if body.system else []
    for number, message in enumerate(body.messages):
        messages += _user(message, number) if message.role == "user" else [_assistant(message, number)]
    return messages


def _user(message: AnthropicMessage, number: int) -> list[dict[str, Any]]:
    """Results of tools are messages of their own, and come first."""
    if isinstance(message.content, str):
        return [{"role": "user", "content": message.content}]
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content or "")}
        for block in message.content
        if isinstance(block, ToolResultBlock)
    ]
    _refuse(message.content, (ThinkingBlock, ToolUseBlock), "user", number)
    texts = [block for block in message.content if isinstance(block, TextBlock)]
    return [*results, {"role": "user", "content": _text(texts)}] if texts else results


def _assistant(message: AnthropicMessage, number: int) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    _refuse(message.content, (ToolResultBlock,), "assistant", number)
    adapted: dict[str, Any] = {"role": "assistant"}
    thoughts = [block.thinking for block in message.content if isinstance(block, ThinkingBlock)]
    texts = [block for block in message.content if isinstance(block, TextBlock)]
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)},
        }
        for block in message.content
        if isinstance(block, ToolUseBlock)
    ]
    if thoughts:
        adapted["reasoning_content"] = "".join(thoughts)
    if texts or not calls:
        adapted["content"] = _text(texts)
    if calls:
        adapted["tool_calls"] = calls
    return adapted


def _refuse(blocks: Sequence[Block], kinds: tuple[type, ...], role: str, number: int) -> None:
    for index, block in enumerate(blocks):
        if isinstance(block, kinds):
            raise InvalidRequest(
                f"A message of role {role} can't hold a block of type {block.type}.",
                param=f"messages[{number}].content[{index}].type",
            )


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
