"""From a chat's events to a response: whole, or as the events of its stream. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from engine.errors import EngineError
from engine.server.chat_events import (
    ChatEvent,
    ChoiceEnded,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from engine.server.generation import Usage

_Event = dict[str, Any]

_TEXT_KINDS = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseWriter:
    """Writes one response down. What it returns are the stream's events; `response` is the whole."""

    def __init__(self, response: dict[str, Any]) -> None:
        """`response`: the fields that stay; status, output and usage are kept here."""
        self.response = response
        self._number = 0
        self._open = False  # whether the last item is being written

    def start(self) -> list[_Event]:
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def feed(self, events: Iterable[ChatEvent]) -> list[_Event]:
        told: list[_Event] = []
        for event in events:
            match event:
                case ReasoningDelta(_, text):
                    told += self._say("reasoning", text)
                case ContentDelta(_, text):
                    told += self._say("message", text)
                case ToolCallDelta(_, _, call_id, name, arguments):
                    if call_id is not None:
                        told += self._begin_call(call_id, name or "")
                    if arguments:
                        self._item["arguments"] += arguments
                        told.append(self._of_item("response.function_call_arguments.delta", delta=arguments))
                case ChoiceEnded(_, finish_reason, _):
                    told += self._end(finish_reason)
        return told

    def end(self, usage: Usage) -> list[_Event]:
        self.response["usage"] = usage_object(usage)
        return [self._whole(f"response.{self.response['status']}")]

    def fail(self, error: EngineError) -> list[_Event]:
        """The response can't be completed; what there is stays in it."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": error.message}
        return [self._whole("response.failed")]

    def cancel(self) -> None:
        self.response["status"] = "cancelled"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The output as a chat's messages."""
        messages: list[dict[str, Any]] = []
        for item in self._output:
            if item["type"] == "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                messages.append({"role": "assistant", "tool_calls": [call]})
            else:
                key = "content" if item["type"] == "message" else "reasoning_content"
                messages.append({"role": "assistant", key: item["content"][0]["text"]})
        return messages

    @property
    def _output(self) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = self.response["output"]
        return output

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1]

    def _say(self, kind: str, text: str) -> list[_Event]:
        told: list[_Event] = []
        if not self._open or self._item["type"] != kind:
            told = [*self._close("completed"), *self._begin_text(kind)]
        self._item["content"][0]["text"] += text
        name = f"response.{_TEXT_KINDS[kind]}.delta"
        extra: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        return [*told, self._of_item(name, content_index=0, delta=text, **extra)]

    def _begin_text(self, kind: str) -> list[_Event]:
        item: dict[str, Any] = {"id": _new_id("msg" if kind == "message" else "rs"), "type": kind}
        item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
        part: dict[str, Any] = {"type": _TEXT_KINDS[kind], "text": ""}
        if kind == "message":
            part.update(annotations=[], logprobs=[])
        told = self._begin({**item, "status": "in_progress", "content": []})
        self._item["content"].append(part)
        told.append(self._of_item("response.content_part.added", content_index=0, part=dict(part)))
        return told

    def _begin_call(self, call_id: str, name: str) -> list[_Event]:
        item = {"id": _new_id("fc"), "type": "function_call", "status": "in_progress"}
        return [
            *self._close("completed"),
            *self._begin({**item, "call_id": call_id, "name": name, "arguments": ""}),
        ]

    def _begin(self, item: dict[str, Any]) -> list[_Event]:
        self._output.append(item)
        self._open = True
        shown = {**item, **({"content": []} if "content" in item else {})}
        return [self._numbered("response.output_item.added", output_index=len(self._output) - 1, item=shown)]

    def _close(self, status: str) -> list[_Event]:
        if not self._open:
            return []
        self._open = False
        item = self._item
        item["status"] = status
        told = []
        if item["type"] == "function_call":
            name = "response.function_call_arguments.done"
            told.append(self._of_item(name, arguments=item["arguments"], name=item["name"]))
        else:
            part = dict(item["content"][0])
            extra: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            name = f"response.{_TEXT_KINDS[item['type']]}.done"
            told.append(self._of_item(name, content_index=0, text=part["text"], **extra))
            told.append(self._of_item("response.content_part.done", content_index=0, part=part))
        done = {**item, **({"content": [dict(item["content"][0])]} if "content" in item else {})}
        index = len(self._output) - 1
        return [*told, self._numbered("response.output_item.done", output_index=index, item=done)]

    def _end(self, finish_reason: str) -> list[_Event]:
        is_whole = finish_reason != "length"
        told = self._close("completed" if is_whole else "incomplete")
        self.response["status"] = "completed" if is_whole else "incomplete"
        if not is_whole:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        return told

    def _of_item(self, kind: str, **fields: Any) -> _Event:
        return self._numbered(kind, item_id=self._item["id"], output_index=len(self._output) - 1, **fields)

    def _whole(self, kind: str) -> _Event:
        return self._numbered(kind, response={**self.response, "output": list(self._output)})

    def _numbered(self, kind: str, **fields: Any) -> _Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
