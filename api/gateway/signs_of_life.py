"""What a waiting stream sends while its model loads or reads the prompt: what its client counts as life.

Anthropic's clients count pings, Codex counts events of the Responses API, others only chunks of a chat. All
other streams get comments, which keep proxies and connections alive. Adapters of other protocols get the
comments too, and write their own signs for them (`StreamTranslator.comment`).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from api.http.asgi import Scope
from api.http.dialects import error_event
from api.http.headers import TRANSLATED, find_header
from api.http.response_channel import is_translated
from api.protocols.base import BegunStream, to_json
from api.protocols.responses.response_object import begun_response
from api.protocols.sse import EventReader, SseComment
from instance_manager.backends.load_signs import LoadProgress

_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


class SignOfLife:
    """Of one stream. This one writes comments."""

    begun: BegunStream | None = None

    def write(self, progress: LoadProgress | None) -> bytes:
        """The next sign."""
        if progress is None:
            return b": waiting for the model\n\n"
        return f": waiting for the model ({progress})\n\n".encode()

    def adapt(self, body: bytes) -> bytes:
        """A piece of the engine's stream, to follow the signs."""
        return body

    def error(self, body: bytes, target: bytes) -> bytes:
        """An error's body, in the dialect of `target`, as the last event."""
        return error_event(body, target)


class _Ping(SignOfLife):
    """Anthropic's SDKs accept it before `message_start`."""

    def write(self, progress: LoadProgress | None) -> bytes:
        return _PING


class _EmptyChunk(SignOfLife):
    """Of a chat; with LOADING_TEXT it tells as reasoning how far the start is, whenever that has changed."""

    def __init__(self, model: str, request_id: str, *, has_text: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._model = model
        self._has_text = has_text
        self._told = ""

    def write(self, progress: LoadProgress | None) -> bytes:
        delta = {}
        text = f"Loading {self._model} … {progress or ''}".rstrip() + "\n"
        if self._has_text and text != self._told:
            self._told = text
            delta = {"reasoning_content": text}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return b"data: " + to_json({**self._head, "choices": [choice]}) + b"\n\n"


class _InProgress(SignOfLife):
    """`response.created`, then `response.in_progress`, which tells how far the start is.

    The stream that follows continues with the same id: Berth's own translation by itself, an engine's by
    `adapt`. The engine knows its response by another id, so this is for responses that are not stored.
    """

    def __init__(self, model: str) -> None:
        self.begun = BegunStream(f"resp_{uuid.uuid4().hex}", int(time.time()))
        self._model = model
        self._reader = EventReader()

    def write(self, progress: LoadProgress | None) -> bytes:
        begun = self.begun
        assert begun is not None  # noqa: S101 - narrows the type
        kinds = ["response.in_progress"] if begun.num_events else ["response.created", "response.in_progress"]
        response = begun_response(begun.response_id, self._model, begun.created_at)
        if progress is not None:
            response["metadata"] = {"loading": str(progress)}
        return b"".join(self._event({"type": kind, "response": response}) for kind in kinds)

    def adapt(self, body: bytes) -> bytes:
        begun = self.begun
        if begun is None or begun.is_continued or not begun.num_events:
            return body
        return b"".join(
            b":" + item.text + b"\n\n" if isinstance(item, SseComment) else self._continued(item.data)
            for item in self._reader.feed(body)
        )

    def error(self, body: bytes, target: bytes) -> bytes:
        begun = self.begun
        if begun is None or not begun.num_events:
            return super().error(body, target)
        response = begun_response(begun.response_id, self._model, begun.created_at)
        response |= {"status": "failed", "error": {"code": "server_error", "message": _message_in(body)}}
        return self._event({"type": "response.failed", "response": response})

    def _continued(self, data: bytes) -> bytes:
        """An engine's event, numbered on and with our id; nothing for those that were sent already."""
        try:
            event = json.loads(data)
        except ValueError:
            return b"data: " + data + b"\n\n"
        if not isinstance(event, dict) or event.get("type") in ("response.created", "response.in_progress"):
            return b""
        if isinstance(event.get("response"), dict) and self.begun is not None:
            event["response"]["id"] = self.begun.response_id
        return self._event(event)

    def _event(self, event: dict[str, Any]) -> bytes:
        begun = self.begun
        if begun is None or "type" not in event:
            return b"data: " + to_json(event) + b"\n\n"
        event = {**event, "sequence_number": begun.num_events}
        begun.num_events += 1
        return f"event: {event['type']}\n".encode() + b"data: " + to_json(event) + b"\n\n"


def sign_of_life(
    scope: Scope, path: str, fields: Mapping[str, Any], request_id: str, *, has_text: bool
) -> SignOfLife:
    """The sign for a stream. `path`: the engine's. `has_text`: chats tell how far the start is."""
    if is_translated(scope) or find_header(scope["headers"], TRANSLATED):
        return SignOfLife()
    model = fields.get("model")
    name = model if isinstance(model, str) else ""
    if path == "/v1/messages":
        return _Ping()
    if path == "/v1/chat/completions":
        return _EmptyChunk(name, request_id, has_text=has_text)
    if path == "/v1/responses" and fields.get("store") is False:
        return _InProgress(name)
    return SignOfLife()


def _message_in(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode("utf-8", "replace")
