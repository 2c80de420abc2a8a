"""The grammar of streamed answers: server-sent events, as OpenAI writes them. Pure: deltas in, bytes out.

What is the same in every chunk of a stream is serialised once; a chunk costs one JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from engine.server.generation import ChoiceDelta, Usage

DONE = b"data: [DONE]\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


ReadUsage = Callable[[], Usage]


class Chunks(Protocol):
    """How one kind of answer is cut into events."""

    def step(self, deltas: Iterable[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        """One step's events, to be written at once. A token without text (yet) shows as an empty piece."""
        ...

    def end(self, usage: Usage) -> bytes:
        """What follows the last step."""
        ...


def error_event(envelope: bytes) -> bytes:
    return b"data: " + envelope + b"\n\n"


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class _Envelope:
    """What stands around the choices of every chunk."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool, continuous_usage: bool) -> None:
        self._head = f"data: {_encode(head)[:-1]},"
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"

    def wrap(self, choice: str, read_usage: ReadUsage) -> str:
        tail = self._tail
        if self._continuous_usage:
            tail = f',"usage":{_encode(usage_object(read_usage()))}}}\n\n'
        return f'{self._head}"choices":[{choice}]{tail}'

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        last = f'{self._head}"choices":[],"usage":{_encode(usage_object(usage))}}}\n\n'
        return last.encode() + DONE


class CompletionChunks:
    def __init__(self, head: dict[str, Any], *, include_usage: bool, continuous_usage: bool) -> None:
        self._envelope = _Envelope(head, include_usage=include_usage, continuous_usage=continuous_usage)

    def step(self, deltas: Iterable[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        events = [
            self._envelope.wrap(
                f'{{"index":{delta.choice.index},"text":{_encode(delta.text)},"logprobs":null{_finish(delta)}}}',
                read_usage,
            )
            for delta in deltas
        ]
        return "".join(events).encode()

    def end(self, usage: Usage) -> bytes:
        return self._envelope.end(usage)


class ChatChunks:
    """The role comes first, then content, then one chunk that says why it ended."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool, continuous_usage: bool) -> None:
        self._envelope = _Envelope(head, include_usage=include_usage, continuous_usage=continuous_usage)
        self._begun: set[int] = set()

    def step(self, deltas: Iterable[ChoiceDelta], read_usage: ReadUsage) -> bytes:
        events = []
        for delta in deltas:
            for content, finish in self._parts(delta):
                choice = f'{{"index":{delta.choice.index},"delta":{content},"logprobs":null{finish}}}'
                events.append(self._envelope.wrap(choice, read_usage))
        return "".join(events).encode()

    def _parts(self, delta: ChoiceDelta) -> Iterable[tuple[str, str]]:
        if delta.choice.index not in self._begun:
            self._begun.add(delta.choice.index)
            yield '{"role":"assistant","content":""}', _UNFINISHED
        if delta.text or delta.finish_reason is None:
            yield f'{{"content":{_encode(delta.text)}}}', _UNFINISHED
        if delta.finish_reason is not None:
            yield "{}", _finish(delta)

    def end(self, usage: Usage) -> bytes:
        return self._envelope.end(usage)


_UNFINISHED = ',"finish_reason":null'


def _finish(delta: ChoiceDelta) -> str:
    if delta.finish_reason is None:
        return _UNFINISHED
    return f',"finish_reason":"{delta.finish_reason}","stop_reason":{_encode(delta.stop_reason)}'
