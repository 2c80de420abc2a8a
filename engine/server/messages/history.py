"""Converts Anthropic's messages to chat messages: turns, tool calls and their results. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InvalidRequest
from engine.server.messages.blocks import TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
from engine.server.messages.bodies import AnthropicMessage, CountBody
from engine.server.messages.provider_blocks import (
    WITHOUT_TEXT,
    is_call,
    is_result,
    is_unknown,
    kind_of,
    summary_of,
)
from engine.server.protocol.provider_text import readable_text, unreadable_kind
from engine.server.protocol.unknown_fields import report_ignored

# A billing header that Claude Code puts before its prompt, with a hash that differs in every request. It is
# useless to the model and would defeat the prefix cache.
_BILLING_HEADER = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?")


@dataclass(slots=True)
class _Turn:
    """A turn under construction. Pieces are joined once at the end, to avoid quadratic copying."""

    role: str
    pieces: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    call_id: str | None = None

    def add(self, text: str, between: str = "\n") -> None:
        if text:
            self.pieces += [between, text] if self.pieces else [text]

    @property
    def message(self) -> dict[str, Any]:
        text = "".join(self.pieces)
        message: dict[str, Any] = {"role": self.role}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if text or not self.calls:
            message["content"] = text
        if self.calls:
            message["tool_calls"] = self.calls
        if self.call_id is not None:
            message["tool_call_id"] = self.call_id
        return message


class ChatHistory:
    """Builds chat messages. Consecutive messages of one role are one turn, as with Anthropic."""

    def __init__(self) -> None:
        self._turns: list[_Turn] = []
        self._ends_with_citation = False

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [turn.message for turn in self._turns]

    @property
    def last_role(self) -> str | None:
        return self._turns[-1].role if self._turns else None

    def system(self, text: str) -> None:
        self._turn("system").add(text)

    def user(self, text: str) -> None:
        self._turn("user").add(text)

    def assistant(self, text: str, *, is_cited: bool = False) -> None:
        """`is_cited`: a piece of a sentence, split off because it has a citation."""
        self._turn("assistant").add(text, "" if is_cited or self._ends_with_citation else "\n")
        self._ends_with_citation = is_cited

    def add_reasoning(self, text: str) -> None:
        self._turn("assistant").reasoning.append(text)

    def call(self, call_id: Any, name: str, arguments: Mapping[str, Any]) -> None:
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        call = {"id": call_id if isinstance(call_id, str) else None, "type": "function", "function": function}
        self._turn("assistant").calls.append(call)

    def result(self, call_id: str, text: str) -> None:
        self._turns.append(_Turn("tool", [text], call_id=call_id))

    def replace_with_summary(self, summary: str) -> None:
        """Replace everything except the first system turn by the summary."""
        self._turns = [turn for turn in self._turns[:1] if turn.role == "system"]
        self.user(f"Summary of the conversation so far:\n{summary}")

    def _turn(self, role: str) -> _Turn:
        if self.last_role != role:
            self._turns.append(_Turn(role))
        return self._turns[-1]


def chat_messages(body: CountBody) -> list[dict[str, Any]]:
    """Raises InvalidRequest for content that cannot be dropped: an image in the current question."""
    history = ChatHistory()
    if body.system:
        blocks = [TextBlock(type="text", text=body.system)] if isinstance(body.system, str) else body.system
        _add_system(history, blocks, "system")
    question_start = _question_start(body.messages)
    last_users = _last_index(body.messages, "user")
    for number, message in enumerate(body.messages):
        if message.role == "system":
            if message.clear_at != "next_user_message" or number > last_users:
                _add_system(history, message.blocks, f"messages[{number}].content")
        elif message.role == "assistant":
            for block in message.blocks:
                _add_assistant(history, block)
        else:
            _add_user(history, message, f"messages[{number}]", is_current_question=number >= question_start)
    if history.last_role is None:
        raise InvalidRequest("messages: there is no text for the model to read.", param="messages")
    return history.messages


def _question_start(messages: list[AnthropicMessage]) -> int:
    """The index where the current question starts: after the assistant's last turn.

    There is none if tool results follow: clients add content to them on their own.
    """
    last = _last_index(messages, "assistant")
    results = any(
        isinstance(block, ToolResultBlock) for message in messages[last + 1 :] for block in message.blocks
    )
    return len(messages) if results else last + 1


def _last_index(messages: list[AnthropicMessage], role: str) -> int:
    return max((number for number, message in enumerate(messages) if message.role == role), default=-1)


def _add_system(history: ChatHistory, blocks: list[Any], path: str) -> None:
    texts = []
    for number, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            texts.append(_BILLING_HEADER.sub("", block.text, count=1))
        elif isinstance(block, dict):
            texts.append(_block_text(block))
        else:  # thinking, a call or its result
            param = f"{path}[{number}].type"
            raise InvalidRequest(
                f"{param}: a system message can't contain blocks of type {block.type}.", param=param
            )
    text = "\n".join(text for text in texts if text)
    if text:
        history.system(text)


def _add_assistant(history: ChatHistory, block: Any) -> None:
    match block:
        case TextBlock():
            if block.text.strip():
                history.assistant(block.text, is_cited=bool(block.citations))
        case ThinkingBlock():
            if block.thinking.strip():
                history.add_reasoning(block.thinking)
        case ToolUseBlock():
            history.call(block.id, block.name, block.input)
        case ToolResultBlock():
            history.result(block.tool_use_id, _result_text(block))
        case _ if is_call(block):
            arguments = block.get("input")
            name = str(block.get("name") or kind_of(block))
            history.call(block.get("id"), name, arguments if isinstance(arguments, dict) else {})
        case _:
            _add_other(history, block, history.assistant)


def _add_user(
    history: ChatHistory, message: AnthropicMessage, path: str, *, is_current_question: bool
) -> None:
    """Tool results become separate messages and come first."""
    results = [block for block in message.blocks if isinstance(block, ToolResultBlock)]
    for result in results:
        history.result(result.tool_use_id, _result_text(result))
    for number, block in enumerate(message.blocks):
        if isinstance(block, TextBlock):
            if block.text:
                history.user(block.text)
        elif not isinstance(block, ToolResultBlock):
            _check_user_block(
                block, f"{path}.content[{number}].type", is_current_question=is_current_question
            )
            _add_other(history, block, history.user)
    if history.last_role not in ("user", "tool"):
        history.user("")


def _check_user_block(block: Any, param: str, *, is_current_question: bool) -> None:
    is_other = isinstance(block, dict)
    kind = kind_of(block) if is_other else block.type
    if not is_other or is_call(block) or kind == "redacted_thinking":
        raise InvalidRequest(f"{param}: a user message can't contain blocks of type {kind}.", param=param)
    unreadable = unreadable_kind(block)
    if is_current_question and (unreadable in ("image", "document") or is_unknown(block)):
        reason = f"the model reads text only, no {unreadable}s" if unreadable else "its type is unknown"
        raise InvalidRequest(f"{param}: blocks of type {kind[:40]} are not supported: {reason}.", param=param)


def _add_other(history: ChatHistory, block: Mapping[str, Any], add_text: Callable[[str], None]) -> None:
    summary = summary_of(block)
    if summary is not None:
        history.replace_with_summary(summary)
    elif is_result(block):
        history.result(block["tool_use_id"], readable_text(block))
    else:
        words = _block_text(block)
        if words:
            add_text(words)


def _block_text(block: Mapping[str, Any]) -> str:
    if is_unknown(block):
        report_ignored(f"messages[].content[type={kind_of(block)}]", "unknown type: only its text is read")
    return "" if kind_of(block) in WITHOUT_TEXT else readable_text(block)


def _result_text(block: ToolResultBlock) -> str:
    content = block.content or ""
    if not isinstance(content, str):
        words = [piece.text if isinstance(piece, TextBlock) else readable_text(piece) for piece in content]
        content = "\n".join(text for text in words if text)
    if block.is_error and "error" not in content.lower():
        return f"Error: {content}" if content else "Error"
    return content
