"""Turns Anthropic's messages into chat messages: system prompt, turns, tool calls and their results. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from api.protocols.foreign_text import readable_text
from api.protocols.messages.media import file_part, image_part
from api.protocols.messages.request import (
    Block,
    CountRequest,
    blocks_of,
    invalid,
    string_of,
    type_of,
)

Message = dict[str, Any]

# A billing header that Claude Code puts before its prompt, with a hash that differs in every request. It is
# useless to the model and would defeat the prefix cache.
_BILLING_HEADER = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?")
_WITHOUT_TEXT = frozenset(
    {"redacted_thinking", "fallback", "mcp_tool_listing", "tool_addition", "tool_removal"}
)
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


@dataclass(slots=True)
class _Turn:
    """A turn under construction: pieces of text and, from users, images and files."""

    role: str
    parts: list[str | Message] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Message] = field(default_factory=list)
    call_id: str | None = None

    def add(self, part: str | Message, between: str = "\n") -> None:
        if part and isinstance(part, str) and self.parts and isinstance(self.parts[-1], str):
            self.parts += [between + part]
        elif part:
            self.parts.append(part)

    @property
    def message(self) -> Message:
        message: Message = {"role": self.role}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.parts or not self.calls:
            message["content"] = self._content()
        if self.calls:
            message["tool_calls"] = self.calls
        if self.call_id is not None:
            message["tool_call_id"] = self.call_id
        return message

    def _content(self) -> str | list[Message]:
        """A string, which every engine takes, unless there is more than text."""
        if all(isinstance(part, str) for part in self.parts):
            return "".join(part for part in self.parts if isinstance(part, str))
        content: list[Message] = []
        for part in self.parts:
            if not isinstance(part, str):
                content.append(part)
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += part
            else:
                content.append({"type": "text", "text": part})
        return content


class ChatTurns:
    """Builds chat messages. Consecutive messages of one role are one turn, as with Anthropic."""

    def __init__(self, ignored: MutableMapping[str, str]) -> None:
        """`ignored`: for what has no effect, and why."""
        self._turns: list[_Turn] = []
        self._ignored = ignored
        self._ends_with_citation = False

    @property
    def messages(self) -> list[Message]:
        return [turn.message for turn in self._turns]

    def add_system(self, content: Any, path: str) -> None:
        texts = []
        for number, block in enumerate(blocks_of(content, path)):
            where = f"{path}[{number}]"
            kind = type_of(block, where)
            if kind in ("thinking", "tool_use", "tool_result"):
                raise invalid(f"{where}.type", f"a system message can't contain blocks of type {kind}")
            text = string_of(block, "text", where, "") if kind == "text" else self._read(block, kind)
            texts.append(_BILLING_HEADER.sub("", text, count=1))
        if text := "\n".join(text for text in texts if text):
            self._turn("system").add(text)

    def add(self, message: Message, path: str) -> None:
        """Raises InvalidProtocolRequest."""
        role = _ROLES.get(str(message.get("role")))
        if role is None:
            raise invalid(f"{path}.role", f"must be user, assistant or system, not {message.get('role')!r}")
        content = message.get("content")
        path = f"{path}.content"
        if content is None and role != "user":
            return
        if role == "system":
            self.add_system(content, path)
        elif role == "assistant":
            for number, block in enumerate(blocks_of(content, path)):
                self._add_assistant(block, f"{path}[{number}]")
        else:
            self._add_user(blocks_of(content, path), path)

    def _add_assistant(self, block: Block, path: str) -> None:
        kind = type_of(block, path)
        if kind == "text":
            if (text := string_of(block, "text", path, "")).strip():
                is_cited = bool(block.get("citations"))  # a piece of a sentence, split off for its citation
                self._turn("assistant").add(text, "" if is_cited or self._ends_with_citation else "\n")
                self._ends_with_citation = is_cited
        elif kind == "thinking":
            if (text := string_of(block, "thinking", path, "")).strip():
                self._turn("assistant").reasoning.append(text)
        elif kind.endswith("tool_use"):
            self._turn("assistant").calls.append(_call(block, kind, path))
        elif kind.endswith("tool_result"):
            self._add_result(block, path)
        elif kind == "compaction" and isinstance(block.get("content"), str):
            self._replace_by_summary(block["content"])
        elif text := self._read(block, kind):
            self._turn("assistant").add(text)

    def _add_user(self, blocks: Any, path: str) -> None:
        """Tool results come first: they answer the calls of the turn before."""
        kinds = [type_of(block, f"{path}[{number}]") for number, block in enumerate(blocks)]
        for number, block in enumerate(blocks):
            if kinds[number].endswith("tool_result"):
                self._add_result(block, f"{path}[{number}]")
        for number, block in enumerate(blocks):
            if not kinds[number].endswith("tool_result"):
                self._add_user_block(block, kinds[number], f"{path}[{number}]")
        if not self._turns or self._turns[-1].role not in ("user", "tool"):
            self._turn("user").add("")

    def _add_user_block(self, block: Block, kind: str, path: str) -> None:
        if kind == "text":
            self._turn("user").add(string_of(block, "text", path, ""))
        elif kind == "image":
            self._turn("user").add(image_part(block, path))
        elif kind == "document":
            self._turn("user").add(file_part(block, path))
        elif kind in ("thinking", "redacted_thinking") or kind.endswith("tool_use"):
            raise invalid(f"{path}.type", f"a user message can't contain blocks of type {kind}")
        elif kind == "compaction" and isinstance(block.get("content"), str):
            self._replace_by_summary(block["content"])
        elif text := self._read(block, kind):
            self._turn("user").add(text)

    def _add_result(self, block: Block, path: str) -> None:
        """Chats have text only in a tool's result, so its images follow in a user's turn."""
        call_id = string_of(block, "tool_use_id", path)
        content = block.get("content") or ""
        if isinstance(content, Mapping):
            content = [content]
        pieces = blocks_of(content, f"{path}.content")
        images = []
        texts = []
        for number, piece in enumerate(pieces):
            where = f"{path}.content[{number}]"
            if type_of(piece, where) == "image":
                images.append(image_part(piece, where))
            else:
                texts.append(readable_text(piece))
        text = "\n".join(text for text in texts if text)
        if block.get("is_error") and "error" not in text.lower():
            text = f"Error: {text}" if text else "Error"
        if images and not text:
            text = "The result is an image, which follows."
        self._turns.append(_Turn("tool", [text] if text else [], call_id=call_id))
        for image in images:
            self._turn("user").add(image)

    def _replace_by_summary(self, summary: str) -> None:
        self._turns = [turn for turn in self._turns[:1] if turn.role == "system"]
        self._turn("user").add(f"Summary of the conversation so far:\n{summary}")

    def _read(self, block: Block, kind: str) -> str:
        """The text of a block of another type."""
        if kind in ("tool_addition", "tool_removal"):
            self._ignored[f"messages[].content[type={kind}]"] = "all tools are offered"
        return "" if kind in _WITHOUT_TEXT else readable_text(block)

    def _turn(self, role: str) -> _Turn:
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(_Turn(role))
        return self._turns[-1]


def chat_messages(request: CountRequest, ignored: MutableMapping[str, str]) -> list[Message]:
    """Raises InvalidProtocolRequest."""
    turns = ChatTurns(ignored)
    if request.system:
        turns.add_system(request.system, "system")
    last_users = max((n for n, each in enumerate(request.messages) if each.get("role") == "user"), default=-1)
    for number, message in enumerate(request.messages):
        is_past = message.get("clear_at") == "next_user_message" and number <= last_users
        if not (message.get("role") == "system" and is_past):
            turns.add(message, f"messages[{number}]")
    if not turns.messages:
        raise invalid("messages", "there is no text for the model to read")
    return turns.messages


def _call(block: Block, kind: str, path: str) -> Message:
    arguments = block.get("input")
    if isinstance(arguments, str):  # some clients keep the text that they received in a stream
        text = arguments or "{}"
    elif isinstance(arguments, Mapping) or arguments is None:
        text = json.dumps(arguments or {}, ensure_ascii=False)
    else:
        raise invalid(f"{path}.input", "must be an object")
    name = string_of(block, "name", path) if kind == "tool_use" else str(block.get("name") or kind)
    call_id = string_of(block, "id", path) if kind == "tool_use" else str(block.get("id") or "")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
