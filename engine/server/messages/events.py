"""Writes a chat's events as Anthropic content blocks: as one message, or as stream events. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from engine.server.generation.chat_events import (
    ChatEvent,
    ChoiceEnded,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from engine.server.generation.chat_output import ChatWriter
from engine.server.generation.generation import Usage

# Clients send back only signed reasoning; the signature itself is not checked.
_SIGNATURE = "berth"
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn", "abort": "refusal"}


class MessageWriter(ChatWriter):
    """Writes one message."""

    def __init__(self, message_id: str, model: str, *, max_tokens: int) -> None:
        """`max_tokens`: as requested, which can be more than fits the context. With 0, the one token that is
        generated to read the prompt into the cache is not shown.
        """
        self._message: dict[str, Any] = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._max_tokens = max_tokens
        self._open_type: str | None = None  # the type of the open block
        self._json = ""  # of an open tool_use

    def start(self, usage: Usage) -> list[dict[str, Any]]:
        initial = {**self._message, "content": [], "usage": self._usage(usage)}
        return [{"type": "message_start", "message": initial}, {"type": "ping"}]

    def feed(self, events: Iterable[ChatEvent]) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        if not self._max_tokens:
            self._message["stop_reason"] = "max_tokens"
            return written
        for event in events:
            match event:
                case ReasoningDelta(_, text):
                    written += self._open_block("thinking", {"thinking": "", "signature": ""})
                    self._blocks[-1]["thinking"] += text
                    written.append(self._delta({"type": "thinking_delta", "thinking": text}))
                case ContentDelta(_, text):
                    written += self._open_block("text", {"text": ""})
                    self._blocks[-1]["text"] += text
                    written.append(self._delta({"type": "text_delta", "text": text}))
                case ToolCallDelta(_, _, call_id, name, arguments):
                    if call_id is not None:
                        written += self._close_block()
                        written += self._open_block("tool_use", {"id": call_id, "name": name, "input": {}})
                    if arguments:
                        self._json += arguments
                        written.append(self._delta({"type": "input_json_delta", "partial_json": arguments}))
                case ChoiceEnded(_, finish_reason, stop_reason):
                    written += self._close_block()
                    self._set_stop_reason(finish_reason, stop_reason)
        return written

    def end(self, usage: Usage) -> list[dict[str, Any]]:
        self._set_context_limit_reason(usage)
        delta = {name: self._message[name] for name in ("stop_reason", "stop_sequence")}
        return [
            {"type": "message_delta", "delta": delta, "usage": self._usage(usage)},
            {"type": "message_stop"},
        ]

    def whole(self, usage: Usage) -> dict[str, Any]:
        self._set_context_limit_reason(usage)
        return {**self._message, "usage": self._usage(usage)}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return usage_object(replace(usage, completion_tokens=min(usage.completion_tokens, self._max_tokens)))

    @property
    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = self._message["content"]
        return blocks

    def _open_block(self, kind: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
        if self._open_type == kind:
            return []
        written = self._close_block()
        self._open_type = kind
        self._blocks.append({"type": kind, **fields})
        block = {"type": kind, **fields}
        return [
            *written,
            {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block},
        ]

    def _close_block(self) -> list[dict[str, Any]]:
        if self._open_type is None:
            return []
        if self._open_type == "tool_use":
            self._blocks[-1]["input"] = _parse_input(self._json)
            self._json = ""
        signature_events = []
        if self._open_type == "thinking":
            self._blocks[-1]["signature"] = _SIGNATURE
            signature_events = [self._delta({"type": "signature_delta", "signature": _SIGNATURE})]
        self._open_type = None
        return [*signature_events, {"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _set_stop_reason(self, finish_reason: str, stop_reason: int | str | None) -> None:
        self._message["stop_reason"] = _STOP_REASONS.get(finish_reason, "end_turn")
        if finish_reason == "stop" and isinstance(stop_reason, str):
            self._message |= {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}

    def _set_context_limit_reason(self, usage: Usage) -> None:
        if self._message["stop_reason"] == "max_tokens" and usage.completion_tokens < self._max_tokens:
            self._message["stop_reason"] = "model_context_window_exceeded"


def _parse_input(text: str) -> dict[str, Any]:
    """A call's input; `{}` for JSON that was truncated by max_tokens."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic counts tokens from the cache separately."""
    fields: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields
