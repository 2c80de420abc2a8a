"""From a chat's events to a response: whole, or as the events of its stream. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
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
from engine.server.generation.generation import Usage
from engine.server.openai.responses.calls import Call, begin_call
from engine.server.openai.responses.items import id_prefix
from engine.server.openai.responses.sealed import seal
from engine.server.openai.responses.toolbox import Toolbox

_Event = dict[str, Any]

# Ends that leave an answer unfinished, as OpenAI calls them; the abort by an id is ours.
_CUT_BY = {FinishReason.LENGTH.value: "max_output_tokens", FinishReason.ABORT.value: "aborted"}
_TEXT_KINDS = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseWriter:
    """Writes one response down. What it returns are the stream's events; `response` is the whole."""

    def __init__(self, response: dict[str, Any], tools: Toolbox, *, seals_reasoning: bool = False) -> None:
        """`response`: the fields that stay; status, output and usage are kept here.

        `seals_reasoning`: a thought comes as `encrypted_content`, too.
        """
        self.response = response
        self._tools = tools
        self._seals_reasoning = seals_reasoning
        self._number = 0
        self._open = False  # whether the last item is being written
        self._call: Call | None = None  # that it is

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
                    told += self._tell_call(arguments)
                case ChoiceEnded(_, finish_reason, _):
                    told += self._end(finish_reason)
        return told

    def end(self, usage: Usage) -> list[_Event]:
        self.response["usage"] = usage_object(usage)
        return [self._whole(f"response.{self.response['status']}")]

    def fail(self, error: EngineError) -> list[_Event]:
        """The response can't be completed; what there is stays in it."""
        self._settle()
        self.response["status"] = "failed"
        code = "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
        self.response["error"] = {"code": code, "message": error.message}
        return [self._whole("response.failed")]

    def cancel(self, usage: Usage) -> None:
        """It goes no further, unless it has come to its end already."""
        self._settle()
        self.response["usage"] = usage_object(usage)
        if self.response["status"] == "in_progress":
            self.response["status"] = "cancelled"

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
        item: dict[str, Any] = {"id": _new_id(kind), "type": kind}
        item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
        part: dict[str, Any] = {"type": _TEXT_KINDS[kind], "text": ""}
        if kind == "message":
            part.update(annotations=[], logprobs=[])
        told = self._begin({**item, "status": "in_progress", "content": []})
        self._item["content"].append(part)
        told.append(self._of_item("response.content_part.added", content_index=0, part=dict(part)))
        return told

    def _begin_call(self, call_id: str, name: str) -> list[_Event]:
        told = self._close("completed")
        self._call = begin_call(self._tools.get(name), name)
        item = {"id": _new_id(self._call.type), "type": self._call.type, "status": "in_progress"}
        return [*told, *self._begin({**item, "call_id": call_id, **self._call.fields})]

    def _tell_call(self, arguments: str) -> list[_Event]:
        if self._call is None or not arguments:
            return []
        return self._call_delta(self._call.feed(arguments))

    def _call_delta(self, delta: str) -> list[_Event]:
        if self._call is None or not delta or self._call.event is None:
            return []
        return [self._of_item(f"{self._call.event}.delta", delta=delta)]

    def _settle(self) -> None:
        """Put down what there is of an item that won't be completed."""
        if self._call is not None:
            self._item.update(self._call.fields)
        if self._open:
            self._item["status"] = "incomplete"

    def _close_call(self, call: Call) -> list[_Event]:
        told = self._call_delta(call.finish())
        self._item.update(call.fields)
        self._call = None
        if call.event is None:
            return told
        return [*told, self._of_item(f"{call.event}.done", **call.done)]

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
        told = self._close_text(item) if self._call is None else self._close_call(self._call)
        done = {**item, **({"content": [dict(item["content"][0])]} if "content" in item else {})}
        index = len(self._output) - 1
        return [*told, self._numbered("response.output_item.done", output_index=index, item=done)]

    def _close_text(self, item: dict[str, Any]) -> list[_Event]:
        part = dict(item["content"][0])
        is_thought = item["type"] == "reasoning"
        if is_thought and self._seals_reasoning:
            item["encrypted_content"] = seal(part["text"])
        extra: dict[str, Any] = {} if is_thought else {"logprobs": []}
        name = f"response.{_TEXT_KINDS[item['type']]}.done"
        return [
            self._of_item(name, content_index=0, text=part["text"], **extra),
            self._of_item("response.content_part.done", content_index=0, part=part),
        ]

    def _end(self, finish_reason: str) -> list[_Event]:
        cut_by = _CUT_BY.get(finish_reason)
        status = "completed" if cut_by is None else "incomplete"
        told = self._close(status)
        if cut_by is not None:
            self.response["incomplete_details"] = {"reason": cut_by}
        if finish_reason == FinishReason.ABORT and self.response["background"]:
            status = "cancelled"  # as by its own route; streams know no such end
        self.response["status"] = status
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


def _new_id(kind: str) -> str:
    return f"{id_prefix(kind)}_{uuid.uuid4().hex}"
