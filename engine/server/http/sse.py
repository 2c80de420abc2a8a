"""Server-sent events: the head of every stream, and the event that reports an error."""

from __future__ import annotations

from engine.errors import EngineError
from engine.server.http.errors import anthropic_envelope, envelope, speaks_anthropic

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def error_event(error: EngineError, path: str) -> bytes:
    """The error in the protocol of the requested path."""
    if speaks_anthropic(path):
        return b"event: error\ndata: " + anthropic_envelope(error) + b"\n\n"
    return b"data: " + envelope(error) + b"\n\n"
