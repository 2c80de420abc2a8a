"""What tests of protocols share: a small inner application, and a way to ask ASGI applications by hand."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from api.http.asgi import App, Message, RawHeaders, Receive, Scope, Send
from api.protocols.sse import EventReader, SseEvent

JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream; charset=utf-8")


@dataclass
class Inner:
    """Replaces the gateway: responds to each request with these pieces, and records the requests.

    `is_cut`: returns without the last message, as the data plane does when an engine breaks off.
    """

    pieces: Sequence[bytes] = ()
    status: int = 200
    headers: RawHeaders = field(default_factory=lambda: [JSON, (b"x-request-id", b"made-inside")])
    is_cut: bool = False
    scopes: list[Scope] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    failure: BaseException | None = None  # what `send` raised

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self.bodies.append(body)
        try:
            await self._answer(send)
        except Exception as exc:
            self.failure = exc
            raise

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not self.is_cut:
            await send({"type": "http.response.body", "body": b""})

    @property
    def asked(self) -> Any:
        """The last request's body."""
        return json.loads(self.bodies[-1])


@dataclass
class Got:
    """A response as a client sees it. `is_whole`: the last message was sent."""

    status: int = 0
    headers: RawHeaders = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    is_whole: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events; `[DONE]` as it is."""
        items = [item for item in EventReader().feed(self.body) if isinstance(item, SseEvent)]
        return [item.data.decode() if item.data == b"[DONE]" else json.loads(item.data) for item in items]

    def header(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, values
        return values[0] if values else None


async def ask(
    app: App,
    path: str,
    body: Any = None,
    *,
    method: str = "POST",
    headers: RawHeaders | None = None,
    extensions: dict[str, Any] | None = None,
    body_pieces: Sequence[bytes] | None = None,
) -> Got:
    """Send one request by ASGI. `body`: JSON, or raw bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    pieces = list(body_pieces) if body_pieces is not None else [raw]
    last = len(pieces) - 1
    messages: deque[Message] = deque(
        {"type": "http.request", "body": piece, "more_body": n < last} for n, piece in enumerate(pieces)
    )
    got = Got()

    async def receive() -> Message:
        if messages:
            return messages.popleft()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Message) -> None:
        assert not got.is_whole
        if message["type"] == "http.response.start":
            got.status, got.headers = message["status"], message["headers"]
        else:
            got.pieces.append(message.get("body", b""))
            got.is_whole = not message.get("more_body", False)

    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "client": ("127.0.0.1", 50000),
        "headers": [(b"host", b"localhost"), *(headers or [])],
        "extensions": extensions or {},
    }
    async with asyncio.timeout(10):
        await app(scope, receive, send)
    return got


def chat_answer(text: str = "Hello", **message: Any) -> bytes:
    """A chat completion in an engine's format."""
    reply = {"role": "assistant", "content": text, **message}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "demo",
        "choices": [{"index": 0, "message": reply, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    return json.dumps(answer).encode()


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chat_stream(*texts: str) -> list[bytes]:
    """A streamed chat completion, one event per piece."""
    choices: list[Any] = [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    choices += [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    choices += [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    chunks: list[dict[str, Any]] = [
        {"model": "demo", "choices": [choice], "usage": None} for choice in choices
    ]
    chunks.append({"model": "demo", "choices": [], "usage": USAGE})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
