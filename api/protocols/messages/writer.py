"""Writes a chat's events as Anthropic's message, whole or as stream events. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from api.protocols.base import Json
from api.protocols.chat_output import (
    CallArguments,
    CallBegun,
    ChatEvent,
    ChatReader,
    ChatUsage,
    ChatWriter,
    Content,
    Ended,
    Reasoning,
)

_Event = dict[str, Any]

# Clients send back only signed reasoning; the signature itself is not checked.
_SIGNATURE = "berth"
_STOP_REASONS = {
    "abort": "refusal",
    "content_filter": "refusal",
    "function_call": "tool_use",
    "length": "max_tokens",
    "stop": "end_turn",
    "tool_calls": "tool_use",
}


class MessageWriter(ChatWriter):
    """Writes one message."""

    def __init__(self, model: str | None, max_tokens: int) -> None:
        """`model`: as requested. With a `max_tokens` of 0 the prompt is only read: no output is shown."""
        self._message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._max_tokens = max_tokens
        self._open: str | None = None  # the type of the open block
        self._pieces: list[str] = []  # of the open block's text

    def start(self, reader: ChatReader) -> list[_Event]:
        self._message["model"] = reader.model or self._message["model"]
        initial = {**self._message, "content": [], "usage": usage_object(reader.usage)}
        return [{"type": "message_start", "message": initial}, {"type": "ping"}]

    def feed(self, events: Iterable[ChatEvent]) -> list[_Event]:
        if not self._max_tokens:
            self._message["stop_reason"] = "max_tokens"
            return []
        written: list[_Event] = []
        for event in events:
            match event:
                case Content(text):
                    written += self._open_block("text", {"text": ""})
                    written.append(self._delta(text, {"type": "text_delta", "text": text}))
                case Reasoning(text):
                    written += self._open_block("thinking", {"thinking": "", "signature": ""})
                    written.append(self._delta(text, {"type": "thinking_delta", "thinking": text}))
                case CallBegun(call_id, name):
                    written += self._close_block()
                    written += self._open_block("tool_use", {"id": call_id, "name": name, "input": {}})
                case CallArguments(text):
                    written.append(self._delta(text, {"type": "input_json_delta", "partial_json": text}))
                case Ended(reason, stop):
                    written += self._close_block()
                    self._end_with(reason, stop)
        return written

    def end(self, usage: ChatUsage) -> list[_Event]:
        self._note_full_context(usage)
        delta = {name: self._message[name] for name in ("stop_reason", "stop_sequence")}
        return [
            {"type": "message_delta", "delta": delta, "usage": self._usage(usage)},
            {"type": "message_stop"},
        ]

    def whole(self, usage: ChatUsage) -> dict[str, Any]:
        self._note_full_context(usage)
        return {**self._message, "usage": self._usage(usage)}

    def fail(self, error: Json) -> list[_Event]:
        return [error]

    @property
    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = self._message["content"]
        return blocks

    def _open_block(self, kind: str, fields: dict[str, Any]) -> list[_Event]:
        if self._open == kind:
            return []
        written = self._close_block()
        self._open = kind
        self._blocks.append({"type": kind, **fields})
        start = {"index": len(self._blocks) - 1, "content_block": {"type": kind, **fields}}
        return [*written, {"type": "content_block_start", **start}]

    def _close_block(self) -> list[_Event]:
        if self._open is None:
            return []
        block, text = self._blocks[-1], "".join(self._pieces)
        written: list[_Event] = []
        if self._open == "tool_use":
            block["input"] = _parsed(text)
        elif self._open == "text":
            block["text"] = text
        else:
            block.update(thinking=text, signature=_SIGNATURE)
            written.append(self._delta("", {"type": "signature_delta", "signature": _SIGNATURE}))
        self._open, self._pieces = None, []
        return [*written, {"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _delta(self, text: str, delta: dict[str, Any]) -> _Event:
        self._pieces.append(text)
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _end_with(self, reason: str, stop: str | None) -> None:
        self._message["stop_reason"] = _STOP_REASONS.get(reason, "end_turn")
        if reason == "stop" and stop is not None:
            self._message |= {"stop_reason": "stop_sequence", "stop_sequence": stop}

    def _note_full_context(self, usage: ChatUsage) -> None:
        if self._message["stop_reason"] == "max_tokens" and 0 < usage.completion < self._max_tokens:
            self._message["stop_reason"] = "model_context_window_exceeded"

    def _usage(self, usage: ChatUsage) -> dict[str, Any]:
        counted = usage_object(usage)
        return {**counted, "output_tokens": min(usage.completion, self._max_tokens)}


def usage_object(usage: ChatUsage) -> dict[str, Any]:
    """Anthropic counts tokens from the cache separately."""
    fields: dict[str, Any] = {
        "input_tokens": usage.prompt - usage.cached,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion,
    }
    if usage.reasoning is not None:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return fields


def _parsed(text: str) -> dict[str, Any]:
    """A call's input; `{}` for JSON that was truncated by max_tokens."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
