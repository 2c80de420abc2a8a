"""Writes a chat's events as a response object and its stream events. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any

from engine.core.types import FinishReason
from engine.errors import EngineError, InvalidRequest
from engine.server.generation.chat_events import (
    ChatEvent,
    ChoiceEnded,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from engine.server.generation.chat_output import ChatWriter
from engine.server.generation.generation import Usage
from engine.server.openai.responses.calls import CallWriter, make_call_writer
from engine.server.openai.responses.items import id_prefix
from engine.server.openai.responses.sealed import seal
from engine.server.openai.responses.toolbox import Toolbox

_Event = dict[str, Any]

# OpenAI's reasons of incomplete responses; "aborted" (by request id) is our own.
_INCOMPLETE_REASONS = {FinishReason.LENGTH.value: "max_output_tokens", FinishReason.ABORT.value: "aborted"}
_TEXT_TYPES = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseWriter(ChatWriter):
    """Writes one response; `response` is the whole object."""

    def __init__(
        self,
        response: dict[str, Any],
        tools: Toolbox,
        *,
        seals_reasoning: bool,
        on_end: Callable[[], None],
    ) -> None:
        """`response`: the initial object; this class updates status, output and usage.

        `seals_reasoning`: reasoning items also have `encrypted_content`. `on_end` is called when the response
        is complete, before the client can know.
        """
        self.response = response
        self._on_end = on_end
        self._tools = tools
        self._seals_reasoning = seals_reasoning
        self._sequence_number = 0
        self._is_open = False  # whether the last item is still open
        self._call: CallWriter | None = None  # the writer of the open call

    def start(self, usage: Usage) -> list[_Event]:
        return [self._response_event("response.created"), self._response_event("response.in_progress")]

    def feed(self, events: Iterable[ChatEvent]) -> list[_Event]:
        written: list[_Event] = []
        for event in events:
            match event:
                case ReasoningDelta(_, text):
                    written += self._add_text("reasoning", text)
                case ContentDelta(_, text):
                    written += self._add_text("message", text)
                case ToolCallDelta(_, _, call_id, name, arguments):
                    if call_id is not None:
                        written += self._open_call(call_id, name or "")
                    written += self._feed_call(arguments)
                case ChoiceEnded(_, finish_reason, _):
                    written += self._finish(finish_reason)
        return written

    def end(self, usage: Usage) -> list[_Event]:
        self.whole(usage)
        return [self._response_event(f"response.{self.response['status']}")]

    def whole(self, usage: Usage) -> dict[str, Any]:
        self.response["usage"] = usage_object(usage)
        self._on_end()
        return self.response

    def fail(self, error: EngineError) -> list[_Event]:
        """Mark the response as failed; partial output is kept."""
        self._close_incomplete()
        self.response["status"] = "failed"
        code = "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
        self.response["error"] = {"code": code, "message": error.message}
        self._on_end()
        return [self._response_event("response.failed")]

    def cancel(self, usage: Usage) -> None:
        """Mark the response as cancelled, unless it has already ended."""
        self._close_incomplete()
        self.response["usage"] = usage_object(usage)
        if self.response["status"] == "in_progress":
            self.response["status"] = "cancelled"
        self._on_end()

    @property
    def _output(self) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = self.response["output"]
        return output

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1]

    def _add_text(self, kind: str, text: str) -> list[_Event]:
        written: list[_Event] = []
        if not self._is_open or self._item["type"] != kind:
            written = [*self._close_item("completed"), *self._open_text(kind)]
        self._item["content"][0]["text"] += text
        name = f"response.{_TEXT_TYPES[kind]}.delta"
        extra: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        return [*written, self._item_event(name, content_index=0, delta=text, **extra)]

    def _open_text(self, kind: str) -> list[_Event]:
        item: dict[str, Any] = {"id": _new_id(kind), "type": kind}
        item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
        part: dict[str, Any] = {"type": _TEXT_TYPES[kind], "text": ""}
        if kind == "message":
            part.update(annotations=[], logprobs=[])
        written = self._open_item({**item, "status": "in_progress", "content": []})
        self._item["content"].append(part)
        written.append(self._item_event("response.content_part.added", content_index=0, part=dict(part)))
        return written

    def _open_call(self, call_id: str, name: str) -> list[_Event]:
        written = self._close_item("completed")
        self._call = make_call_writer(self._tools.get(name), name)
        item = {"id": _new_id(self._call.type), "type": self._call.type, "status": "in_progress"}
        return [*written, *self._open_item({**item, "call_id": call_id, **self._call.fields})]

    def _feed_call(self, arguments: str) -> list[_Event]:
        if self._call is None or not arguments:
            return []
        return self._call_delta(self._call.feed(arguments))

    def _call_delta(self, delta: str) -> list[_Event]:
        if self._call is None or not delta or self._call.event is None:
            return []
        return [self._item_event(f"{self._call.event}.delta", delta=delta)]

    def _close_incomplete(self) -> None:
        """Record the partial content of an open item and mark it incomplete."""
        if self._call is not None:
            self._item.update(self._call.fields)
        if self._is_open:
            self._item["status"] = "incomplete"

    def _close_call(self, call: CallWriter) -> list[_Event]:
        written = self._call_delta(call.finish())
        self._item.update(call.fields)
        self._call = None
        if call.event is None:
            return written
        return [*written, self._item_event(f"{call.event}.done", **call.done)]

    def _open_item(self, item: dict[str, Any]) -> list[_Event]:
        self._output.append(item)
        self._is_open = True
        shown = {**item, **({"content": []} if "content" in item else {})}
        return [self._event("response.output_item.added", output_index=len(self._output) - 1, item=shown)]

    def _close_item(self, status: str) -> list[_Event]:
        if not self._is_open:
            return []
        self._is_open = False
        item = self._item
        item["status"] = status
        written = self._close_text(item) if self._call is None else self._close_call(self._call)
        done = {**item, **({"content": [dict(item["content"][0])]} if "content" in item else {})}
        index = len(self._output) - 1
        return [*written, self._event("response.output_item.done", output_index=index, item=done)]

    def _close_text(self, item: dict[str, Any]) -> list[_Event]:
        part = dict(item["content"][0])
        is_reasoning = item["type"] == "reasoning"
        if is_reasoning and self._seals_reasoning:
            item["encrypted_content"] = seal(part["text"])
        extra: dict[str, Any] = {} if is_reasoning else {"logprobs": []}
        name = f"response.{_TEXT_TYPES[item['type']]}.done"
        return [
            self._item_event(name, content_index=0, text=part["text"], **extra),
            self._item_event("response.content_part.done", content_index=0, part=part),
        ]

    def _finish(self, finish_reason: str) -> list[_Event]:
        incomplete_reason = _INCOMPLETE_REASONS.get(finish_reason)
        status = "completed" if incomplete_reason is None else "incomplete"
        written = self._close_item(status)
        if incomplete_reason is not None:
            self.response["incomplete_details"] = {"reason": incomplete_reason}
        if finish_reason == FinishReason.ABORT and self.response["background"]:
            status = "cancelled"  # as with the cancel route; there is no such stream event
        self.response["status"] = status
        return written

    def _item_event(self, kind: str, **fields: Any) -> _Event:
        return self._event(kind, item_id=self._item["id"], output_index=len(self._output) - 1, **fields)

    def _response_event(self, kind: str) -> _Event:
        return self._event(kind, response={**self.response, "output": list(self._output)})

    def _event(self, kind: str, **fields: Any) -> _Event:
        event = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return event


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _new_id(kind: str) -> str:
    return f"{id_prefix(kind)}_{uuid.uuid4().hex}"
