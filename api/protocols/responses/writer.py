"""Writes a chat's events as a response object and its stream events. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from api.protocols.base import BegunStream, Json
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
from api.protocols.responses.calls import CallWriter, call_writer
from api.protocols.responses.conversation import new_id
from api.protocols.responses.sealed import seal
from api.protocols.responses.toolbox import Toolbox

_Event = dict[str, Any]

_INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter", "abort": "aborted"}
_TEXT_TYPES = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseWriter(ChatWriter):
    """Writes one response; `response` is the whole object."""

    def __init__(
        self,
        response: dict[str, Any],
        toolbox: Toolbox,
        *,
        seals_reasoning: bool,
        begun: BegunStream | None,
        on_end: Callable[[dict[str, Any]], None],
    ) -> None:
        """`response`: the initial object; this class updates status, output and usage.

        `seals_reasoning`: reasoning items also have `encrypted_content`. `on_end` is called when the response
        is complete, before the client can know.
        """
        self.response = response
        self._toolbox = toolbox
        self._seals_reasoning = seals_reasoning
        self._begun = begun
        self._on_end = on_end
        self._sequence_number = 0
        self._is_open = False  # whether the last item is still open
        self._pieces: list[str] = []  # of an open text
        self._call: CallWriter | None = None  # of an open call

    def start(self, reader: ChatReader) -> list[_Event]:
        self.response["model"] = reader.model or self.response["model"]
        if self._begun is not None and self._begun.num_events:
            self._sequence_number = self._begun.num_events
            self._begun.is_continued = True
            return []
        return [self._response_event("response.created"), self._response_event("response.in_progress")]

    def feed(self, events: Iterable[ChatEvent]) -> list[_Event]:
        written: list[_Event] = []
        for event in events:
            match event:
                case Content(text):
                    written += self._add_text("message", text)
                case Reasoning(text):
                    written += self._add_text("reasoning", text)
                case CallBegun(call_id, name):
                    written += self._open_call(call_id, name)
                case CallArguments(text):
                    written += self._add_arguments(text)
                case Ended(reason, _):
                    written += self._finish(reason)
        return written

    def end(self, usage: ChatUsage) -> list[_Event]:
        self.whole(usage)
        return [self._response_event(f"response.{self.response['status']}")]

    def whole(self, usage: ChatUsage) -> dict[str, Any]:
        self.response["usage"] = usage_object(usage)
        self._on_end(self.response)
        return self.response

    def fail(self, error: Json) -> list[_Event]:
        """The output so far stays in the response."""
        if self._call is not None:
            self._item.update(self._call.fields)
        elif self._is_open:
            self._item["content"][0]["text"] = "".join(self._pieces)
        if self._is_open:
            self._item["status"] = "incomplete"
        inside = error.get("error") or {}
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": inside.get("message", "")}
        self._on_end(self.response)
        return [self._response_event("response.failed")]

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
        self._pieces.append(text)
        name = f"response.{_TEXT_TYPES[kind]}.delta"
        extra: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        return [*written, self._item_event(name, content_index=0, delta=text, **extra)]

    def _open_text(self, kind: str) -> list[_Event]:
        item: dict[str, Any] = {"id": new_id(kind), "type": kind}
        item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
        part: dict[str, Any] = {"type": _TEXT_TYPES[kind], "text": ""}
        if kind == "message":
            part.update(annotations=[], logprobs=[])
        written = self._open_item({**item, "status": "in_progress", "content": []})
        self._item["content"].append(part)
        return [*written, self._item_event("response.content_part.added", content_index=0, part=dict(part))]

    def _open_call(self, call_id: str, name: str) -> list[_Event]:
        written = self._close_item("completed")
        self._call = call_writer(self._toolbox.get(name), name)
        item = {"id": new_id(self._call.type), "type": self._call.type, "status": "in_progress"}
        return [*written, *self._open_item({**item, "call_id": call_id, **self._call.fields})]

    def _add_arguments(self, text: str) -> list[_Event]:
        return [] if self._call is None else self._call_delta(self._call.feed(text))

    def _call_delta(self, delta: str) -> list[_Event]:
        if self._call is None or not delta or self._call.event is None:
            return []
        return [self._item_event(f"{self._call.event}.delta", delta=delta)]

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
        self._pieces = []
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
        item["content"][0]["text"] = text = "".join(self._pieces)
        part = dict(item["content"][0])
        is_reasoning = item["type"] == "reasoning"
        if is_reasoning and self._seals_reasoning:
            item["encrypted_content"] = seal(text)
        extra: dict[str, Any] = {} if is_reasoning else {"logprobs": []}
        return [
            self._item_event(
                f"response.{_TEXT_TYPES[item['type']]}.done", content_index=0, text=text, **extra
            ),
            self._item_event("response.content_part.done", content_index=0, part=part),
        ]

    def _finish(self, reason: str) -> list[_Event]:
        incomplete = _INCOMPLETE_REASONS.get(reason)
        self.response["status"] = status = "completed" if incomplete is None else "incomplete"
        if incomplete is not None:
            self.response["incomplete_details"] = {"reason": incomplete}
        return self._close_item(status)

    def _item_event(self, kind: str, **fields: Any) -> _Event:
        return self._event(kind, item_id=self._item["id"], output_index=len(self._output) - 1, **fields)

    def _response_event(self, kind: str) -> _Event:
        return self._event(kind, response={**self.response, "output": list(self._output)})

    def _event(self, kind: str, **fields: Any) -> _Event:
        event = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return event


def usage_object(usage: ChatUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
        "total_tokens": usage.prompt + usage.completion,
    }
