"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import EngineError, InvalidRequest
from engine.server.generation.chat_run import ChatRun, encode_conversation, start_chat
from engine.server.generation.service import GenerationService
from engine.server.http.client_disconnect import cancel_on_disconnect
from engine.server.http.errors import anthropic_envelope, error_response
from engine.server.http.large_work import LARGE_BYTES
from engine.server.http.request_ids import request_id_of
from engine.server.http.sse import STREAM_HEADERS
from engine.server.messages.bodies import COUNT_RULES, RULES, CountBody, MessagesBody
from engine.server.messages.events import MessageWriter
from engine.server.messages.translate import ReasoningSupport, effort_of, renamed, to_chat
from engine.server.model.chat_template import TemplateRejects
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.chat_body import ChatBody

log = logging.getLogger(__name__)

PATH = "/v1/messages"

T = TypeVar("T")


async def create_message(request: Request) -> ASGIApp:
    service: GenerationService = request.app.state.service
    body = await read_body(request, MessagesBody, RULES)
    service.model.check_name(body.model)
    run = await _with_chat(request, body, lambda chat: start_chat(service, chat))
    message_id = f"msg_{request_id_of(request, None)}"
    writer = MessageWriter(message_id, body.model or service.model.name, max_tokens=body.max_tokens)
    return MessageStream(run, writer) if body.stream else MessageObject(run, writer)


async def count_tokens(request: Request) -> Response:
    service: GenerationService = request.app.state.service
    body = await read_body(request, CountBody, COUNT_RULES)
    service.model.check_name(body.model)
    tokens = await _with_chat(request, body, lambda chat: encode_conversation(service, chat))
    return JSONResponse({"input_tokens": len(tokens)})


async def _with_chat(request: Request, body: CountBody, use: Callable[[ChatBody], Awaitable[T]]) -> T:
    """Apply `use` to the body as a chat; if the template rejects it, retry without the reasoning effort.

    Clients send efforts without knowing whether the model's template supports them.
    """
    service: GenerationService = request.app.state.service
    support = ReasoningSupport(budget=service.model.reasoning_format is not None)
    is_large = int(request.headers.get("content-length", LARGE_BYTES)) >= LARGE_BYTES
    large_work = service.large_work

    async def convert(support: ReasoningSupport) -> T:
        try:
            make = partial(to_chat, body, support)
            chat = await large_work.run(make) if is_large else make()
            return await use(chat)
        except InvalidRequest as error:
            raise renamed(error, body) from error

    try:
        return await convert(support)
    except TemplateRejects:
        if effort_of(body) is None:
            raise
        with suppress(TemplateRejects):
            return await convert(replace(support, effort=False))
        raise


class MessageObject:
    """An ASGI response: the complete message object."""

    def __init__(self, run: ChatRun, writer: MessageWriter) -> None:
        self._run = run
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await cancel_on_disconnect(receive, self._collect)
        if response is not None:
            await response(scope, receive, send)

    async def _collect(self) -> Response:
        try:
            async with self._run as run:
                async for events in run.steps():
                    self._writer.feed(events)
        except EngineError as error:
            return error_response(error, PATH)
        return JSONResponse(self._writer.message(self._run.usage))


class MessageStream:
    """An ASGI response: Anthropic's stream events.

    As with chat completions, a request that fails before its first event gets an error status; later, the
    error is sent as an event and the connection is closed abruptly.
    """

    def __init__(self, run: ChatRun, writer: MessageWriter) -> None:
        self._run = run
        self._writer = writer
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stream() -> EngineError | None:
            try:
                await self._stream(send)
            except EngineError as error:
                return error
            return None

        error = await cancel_on_disconnect(receive, stream)
        if error is not None and not self._has_begun:
            await error_response(error, PATH)(scope, receive, send)
        elif error is not None:
            log.warning("Stream failed: %s", error)
            await self._send(send, b"event: error\ndata: " + anthropic_envelope(error) + b"\n\n")

    async def _stream(self, send: Send) -> None:
        async with self._run as run:
            async for events in run.steps():
                first = [] if self._has_begun else [self._writer.start(run.usage), {"type": "ping"}]
                written = [*first, *self._writer.feed(events)]
                if written:
                    await self._send(send, _encode(written))
        await self._send(send, _encode(self._writer.end(self._run.usage)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, events: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await send({"type": "http.response.body", "body": events, "more_body": True})


def _encode(events: list[dict[str, Any]]) -> bytes:
    lines = [f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join(lines).encode()
