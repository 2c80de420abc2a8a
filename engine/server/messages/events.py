"""From a chat's events to content blocks: whole, or as Anthropic's stream tells them. Pure."""

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
from engine.server.generation.generation import Usage

# Clients send back only thoughts that are signed, and nothing here depends on whose signature it is.
_SIGNATURE = "berth"
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn", "abort": "refusal"}


class MessageWriter:
    """Writes one message down. `feed` gives the stream's events; `message` is the whole so far."""

    def __init__(self, message_id: str, model: str, *, max_tokens: int) -> None:
        """`max_tokens`: as asked for, which may be more than the context has room for. With 0 nothing is told
        of the one token that it takes to read a prompt into the cache.
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
        self._open: str | None = None  # the kind of the block that is being written
        self._json = ""  # of an open tool_use

    def start(self, usage: Usage) -> dict[str, Any]:
        """The first event; to be asked for before anything is fed."""
        begun = {**self._message, "content": [], "usage": self._usage(usage)}
        return {"type": "message_start", "message": begun}

    def feed(self, events: Iterable[ChatEvent]) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        if not self._max_tokens:
            self._message["stop_reason"] = "max_tokens"
            return told
        for event in events:
            match event:
                case ReasoningDelta(_, text):
                    told += self._begin("thinking", {"thinking": "", "signature": ""})
                    self._blocks[-1]["thinking"] += text
                    told.append(self._delta({"type": "thinking_delta", "thinking": text}))
                case ContentDelta(_, text):
                    told += self._begin("text", {"text": ""})
                    self._blocks[-1]["text"] += text
                    told.append(self._delta({"type": "text_delta", "text": text}))
                case ToolCallDelta(_, _, call_id, name, arguments):
                    if call_id is not None:
                        told += self._close()
                        told += self._begin("tool_use", {"id": call_id, "name": name, "input": {}})
                    if arguments:
                        self._json += arguments
                        told.append(self._delta({"type": "input_json_delta", "partial_json": arguments}))
                case ChoiceEnded(_, finish_reason, stop_reason):
                    told += self._close()
                    self._end(finish_reason, stop_reason)
        return told

    def end(self, usage: Usage) -> list[dict[str, Any]]:
        self._tell_limit(usage)
        delta = {name: self._message[name] for name in ("stop_reason", "stop_sequence")}
        return [
            {"type": "message_delta", "delta": delta, "usage": self._usage(usage)},
            {"type": "message_stop"},
        ]

    def message(self, usage: Usage) -> dict[str, Any]:
        self._tell_limit(usage)
        return {**self._message, "usage": self._usage(usage)}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return usage_object(replace(usage, completion_tokens=min(usage.completion_tokens, self._max_tokens)))

    @property
    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = self._message["content"]
        return blocks

    def _begin(self, kind: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
        if self._open == kind:
            return []
        told = self._close()
        self._open = kind
        self._blocks.append({"type": kind, **fields})
        block = {"type": kind, **fields}
        return [
            *told,
            {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block},
        ]

    def _close(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        if self._open == "tool_use":
            self._blocks[-1]["input"] = _whole_object(self._json)
            self._json = ""
        signed = []
        if self._open == "thinking":
            self._blocks[-1]["signature"] = _SIGNATURE
            signed = [self._delta({"type": "signature_delta", "signature": _SIGNATURE})]
        self._open = None
        return [*signed, {"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _end(self, finish_reason: str, stop_reason: int | str | None) -> None:
        self._message["stop_reason"] = _STOP_REASONS.get(finish_reason, "end_turn")
        if finish_reason == "stop" and isinstance(stop_reason, str):
            self._message |= {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}

    def _tell_limit(self, usage: Usage) -> None:
        if self._message["stop_reason"] == "max_tokens" and usage.completion_tokens < self._max_tokens:
            self._message["stop_reason"] = "model_context_window_exceeded"


def _whole_object(text: str) -> dict[str, Any]:
    """A call's input; what was cut off by max_tokens isn't one, and can't be given as one."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what came from the cache apart."""
    told: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return told
