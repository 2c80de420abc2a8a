"""Writes streams as OpenAI's server-sent events. Pure: deltas in, bytes out.

The constant parts of chunks are serialized once; each chunk costs one JSON string.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from engine.server.generation.chat_events import (
    ChatEvent,
    ChoiceEnded,
    ChoiceReader,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from engine.server.generation.generation import ChoiceDelta, ReadUsage, Usage
from engine.server.generation.output import EventWriter
from engine.server.openai.choice_details import ChoiceDetails

DONE = b"data: [DONE]\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def head_of(request_id: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": request_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    described: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens is not None:
        described["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return described


class _Envelope:
    """The constant parts around the choices of a chunk."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool, continuous_usage: bool) -> None:
        self._head = f"data: {_encode(head)[:-1]},"
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"

    def wrap(self, choice: str, read_usage: ReadUsage, more: str = "") -> str:
        """A chunk of one choice; `more` has additional fields of the chunk, each preceded by a comma."""
        tail = self._tail
        if self._continuous_usage:
            tail = f',"usage":{_encode(usage_object(read_usage()))}}}\n\n'
        return f'{self._head}"choices":[{choice}]{more}{tail}'

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        last = f'{self._head}"choices":[],"usage":{_encode(usage_object(usage))}}}\n\n'
        return last.encode() + DONE


class CompletionChunks(EventWriter):
    def __init__(
        self, head: dict[str, Any], details: ChoiceDetails, *, include_usage: bool, continuous_usage: bool
    ) -> None:
        self._details = details
        self._envelope = _Envelope(head, include_usage=include_usage, continuous_usage=continuous_usage)
        self._begun: set[int] = set()

    def step(self, deltas: Iterable[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        return "".join(self._envelope.wrap(self._choice(delta), read_usage) for delta in deltas).encode()

    def _choice(self, delta: ChoiceDelta) -> str:
        logprobs = "null"
        extra = ""
        if self._details.any_requested:
            is_first = delta.choice.index not in self._begun
            self._begun.add(delta.choice.index)
            logprobs = _encode(self._details.completion_logprobs([delta]))
            extra = _fields(self._details.token_ids([delta], is_first=is_first))
        return (
            f'{{"index":{delta.choice.index},"text":{_encode(delta.text)},"logprobs":{logprobs}'
            f"{_finish(delta.finish_reason, delta.stop_reason)}{extra}}}"
        )

    def end(self, usage: Usage) -> bytes:
        return self._envelope.end(usage)


class ChatChunks(EventWriter):
    """Per choice: a chunk with the role, chunks with output, and a chunk with the finish reason."""

    def __init__(
        self,
        head: dict[str, Any],
        details: ChoiceDetails,
        readers: Mapping[int, ChoiceReader] | None,
        *,
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        """`readers`: by choice index; None if all text is content."""
        self._details = details
        self._readers = readers
        self._is_content_only = readers is None and not details.any_requested
        self._envelope = _Envelope(head, include_usage=include_usage, continuous_usage=continuous_usage)
        self._begun: set[int] = set()

    def step(self, deltas: Iterable[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        chunks = []
        for delta in deltas:
            index = delta.choice.index
            if index not in self._begun:
                self._begun.add(index)
                role = f'{{"index":{index},"delta":{_ROLE},"logprobs":null{_UNFINISHED}}}'
                chunks.append(
                    self._envelope.wrap(role, read_usage, _fields(self._details.prompt_fields(delta)))
                )
            if self._is_content_only and delta.finish_reason is None:  # the common case
                choice = f'{{"index":{index},"delta":{{"content":{_encode(delta.text)}}}{_NO_END}}}'
                chunks.append(self._envelope.wrap(choice, read_usage))
                continue
            for content, logprobs, tail in self._parts(delta):
                choice = f'{{"index":{index},"delta":{content},"logprobs":{logprobs}{tail}}}'
                chunks.append(self._envelope.wrap(choice, read_usage))
        return "".join(chunks).encode()

    def _parts(self, delta: ChoiceDelta) -> Iterable[tuple[str, str, str]]:
        """Tuples of the chunk's delta, its logprobs, and the fields after them."""
        contents, end = self._contents(delta)
        if self._details.any_requested:
            logprobs = _encode(self._details.chat_logprobs([delta]))
            tail = _UNFINISHED + _fields(self._details.token_ids([delta]))
            yield contents[0] if contents else '{"content":""}', logprobs, tail
            contents = contents[1:]
        for content in contents:
            yield content, "null", _UNFINISHED
        if end is not None:
            yield "{}", "null", end

    def _contents(self, delta: ChoiceDelta) -> tuple[list[str], str | None]:
        """The deltas of the step's chunks, and the finish fields if the choice ends."""
        reason = delta.finish_reason
        if self._readers is None:
            contents = [f'{{"content":{_encode(delta.text)}}}'] if delta.text or reason is None else []
            return contents, None if reason is None else _finish(reason, delta.stop_reason)
        events = self._readers[delta.choice.index].read(delta)
        contents = [_delta(event) for event in events if not isinstance(event, ChoiceEnded)]
        ends = [_finish(e.finish_reason, e.stop_reason) for e in events if isinstance(e, ChoiceEnded)]
        return contents, ends[0] if ends else None

    def end(self, usage: Usage) -> bytes:
        return self._envelope.end(usage)


_UNFINISHED = ',"finish_reason":null'
_NO_END = ',"logprobs":null' + _UNFINISHED
_ROLE = '{"role":"assistant","content":""}'


def _finish(reason: str | None, stop_reason: int | str | None) -> str:
    if reason is None:
        return _UNFINISHED
    return f',"finish_reason":"{reason}","stop_reason":{_encode(stop_reason)}'


def _fields(fields: Mapping[str, Any]) -> str:
    """Additional fields of an object, each preceded by a comma."""
    return "".join(f",{_encode(name)}:{_encode(value)}" for name, value in fields.items())


def _delta(event: ChatEvent) -> str:
    match event:
        case ContentDelta(_, text):
            return f'{{"content":{_encode(text)}}}'
        case ReasoningDelta(_, text):
            return f'{{"reasoning":{_encode(text)}}}'
        case ToolCallDelta(_, call_index, None, _, arguments):
            call: dict[str, Any] = {"index": call_index, "function": {"arguments": arguments}}
        case ToolCallDelta(_, call_index, call_id, name, arguments):
            function = {"name": name, "arguments": arguments}
            call = {"index": call_index, "id": call_id, "type": "function", "function": function}
        case ChoiceEnded():
            return "{}"
    return f'{{"tool_calls":[{_encode(call)}]}}'
