"""Token counts of responses, read from the `usage` object that engines put at their end.

A response is not parsed. Its last bytes are searched for the name, and only the object after it is decoded.
Compressed responses, and those that continue for long after their usage, are not counted.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any, NamedTuple

logger = logging.getLogger("berth.usage")

_NAME = b'"usage"'
# How much of the end is searched: little of a whole response, where the search is the main cost.
_WINDOW_BYTES = 640
_STREAM_WINDOW_BYTES = 2048
_ENDS = (b"}", b"\n")  # of a JSON object or a stream of events
_MAX_OBJECT_BYTES = 1024
_MAX_TOKENS = 2**32  # of one response; more is not a token count
_SHOWN = 40  # characters quoted of an invalid count
_COLON = re.compile(r"\s*:\s*")
_DECODER = json.JSONDecoder()


_warned_fields: set[str] = set()  # fields with an invalid count, each logged once per process


class TokenUsage(NamedTuple):
    """Tokens of one request; prompt tokens include cached ones."""

    prompt_tokens: int
    completion_tokens: int
    is_estimated: bool = False  # counted by events, as the engine reported nothing


def usage_of(body: bytes, window_bytes: int = _WINDOW_BYTES) -> TokenUsage | None:
    """The usage in a whole response; None if there is none.

    Knows the fields of OpenAI's Completions, Chat, Embeddings and Responses and of Anthropic's Messages.
    """
    if not body.endswith(_ENDS):
        return None
    at = body.rfind(_NAME, -window_bytes)  # within a string, a backslash would precede the closing quote
    return None if at < 0 else _decode(body[at + len(_NAME) : at + len(_NAME) + _MAX_OBJECT_BYTES])


def _decode(after_name: bytes) -> TokenUsage | None:
    text = after_name.decode("utf-8", "replace")
    colon = _COLON.match(text)
    if colon is None:
        return None
    try:
        usage, _ = _DECODER.raw_decode(text, colon.end())
    except (ValueError, RecursionError):
        return None
    return _tokens(usage) if isinstance(usage, dict) else None


def _tokens(usage: dict[str, Any]) -> TokenUsage | None:
    completion = _count(usage, "completion_tokens", "output_tokens")
    prompt = _count(usage, "prompt_tokens")
    if prompt is None and (prompt := _count(usage, "input_tokens")) is not None:
        # Messages reports cached tokens separately.
        prompt += _count(usage, "cache_read_input_tokens") or 0
        prompt += _count(usage, "cache_creation_input_tokens") or 0
    if prompt is None and (total := _count(usage, "total_tokens")) is not None:
        prompt = max(0, total - (completion or 0))
    if prompt is None and completion is None:
        return None
    return TokenUsage(prompt or 0, completion or 0)


def _count(usage: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if type(value) is int and 0 <= value <= _MAX_TOKENS:
            return value
        if value is not None and name not in _warned_fields:
            _warned_fields.add(name)
            shown = json.dumps(value)[:_SHOWN]
            logger.warning(
                "ignoring an engine's usage: %s = %s is not a token count (logged once)", name, shown
            )
    return None


class ResponseTail:
    """The end of a streamed response and its number of events, from which its usage is determined."""

    __slots__ = ("_counts_events", "_num_events", "_pieces", "_size")

    def __init__(self, *, is_event_stream: bool) -> None:
        self._counts_events = is_event_stream
        self._pieces: list[bytes] = []
        self._size = 0
        self._num_events = 0

    def add(self, piece: bytes) -> None:
        """Add the next piece, as received."""
        if self._counts_events:
            self._num_events += piece.count(b"\ndata:") + piece.startswith(b"data:")
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > 8 * _STREAM_WINDOW_BYTES:  # trimmed rarely: a copy per small piece would cost more
            self._trim()

    def usage(self) -> TokenUsage | None:
        """The engine's usage; else, for a stream, one token per event except `[DONE]`."""
        end = self._trim()
        if (usage := usage_of(end + b"\n", _STREAM_WINDOW_BYTES)) is not None:
            return usage
        num_tokens = self._num_events - end.rstrip().endswith(b"data: [DONE]")
        return TokenUsage(0, num_tokens, is_estimated=True) if num_tokens > 0 else None

    def _trim(self) -> bytes:
        end = b"".join(self._pieces)[-_STREAM_WINDOW_BYTES:]
        self._pieces = [end]
        self._size = len(end)
        return end
