"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from engine.errors import InvalidRequest
from engine.server.generation.chat_output import ChatOutput
from engine.server.generation.chat_run import encode_conversation, prepare_chat
from engine.server.generation.output import EventStream, WholeBody
from engine.server.generation.service import GenerationService
from engine.server.http.large_work import LARGE_BYTES
from engine.server.http.request_ids import request_id_of
from engine.server.messages.bodies import COUNT_RULES, RULES, CountBody, MessagesBody
from engine.server.messages.events import MessageWriter
from engine.server.messages.translate import ReasoningSupport, effort_of, renamed, to_chat
from engine.server.model.chat_template import TemplateRejects
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.chat_body import ChatBody

T = TypeVar("T")


async def create_message(request: Request) -> ASGIApp:
    service: GenerationService = request.app.state.service
    body = await read_body(request, MessagesBody, RULES)
    service.model.check_name(body.model)
    run = await _with_chat(request, body, lambda chat: prepare_chat(service, chat))
    message_id = f"msg_{request_id_of(request, None)}"
    writer = MessageWriter(message_id, body.model or service.model.name, max_tokens=body.max_tokens)
    output = ChatOutput(run, writer)
    if body.stream:
        return EventStream(run.generation, output, service.large_work)
    return WholeBody(run.generation, output)


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
