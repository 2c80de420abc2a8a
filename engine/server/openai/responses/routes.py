"""POST /v1/responses, and what can be done with one afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import EngineError, InvalidRequest, PromptTooLong
from engine.server.generation.chat_run import ChatRun, encode_conversation, start_chat
from engine.server.generation.response_store import StoredResponse, TenantResponses
from engine.server.generation.service import GenerationService
from engine.server.http.client_disconnect import unless_client_leaves
from engine.server.http.errors import error_response
from engine.server.http.request_ids import new_answer_id
from engine.server.http.sse import STREAM_HEADERS
from engine.server.http.tenants import current_tenant
from engine.server.openai.responses.bodies import RULES, InputTokensBody, ResponsesBody
from engine.server.openai.responses.items import read_items
from engine.server.openai.responses.listing import list_items
from engine.server.openai.responses.tools import runnable
from engine.server.openai.responses.translate import Asked, fitting_cut
from engine.server.openai.responses.writer import ResponseWriter
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.chat_body import ChatBody

log = logging.getLogger(__name__)

_MANY_ITEMS = 500  # from here on, reading them takes milliseconds, and the loop has streams to serve


async def create_response(request: Request) -> ASGIApp:
    service: GenerationService = request.app.state.service
    body = await read_body(request, ResponsesBody, RULES)
    service.model.check_name(body.model)
    store = _store(request)
    asked = await _read(body, service, store)
    # Of its own, never the request's, which clients choose and others may guess: what has it is kept.
    name = f"resp_{new_answer_id()}"
    run = await _start(service, asked, cuts=body.truncation == "auto")
    response = _new_response(name, body, body.model or service.model.name)
    writer = ResponseWriter(response, asked.toolbox, seals_reasoning=body.seals_reasoning)
    making = ResponseTask(run, writer, asked.items, store if body.store else None)
    if body.background:
        return JSONResponse(making.in_background())
    return ResponseStream(making) if body.stream else ResponseObject(making)


async def count_input_tokens(request: Request) -> Response:
    service: GenerationService = request.app.state.service
    body = await read_body(request, InputTokensBody, RULES)
    service.model.check_name(body.model)
    asked = await _read(body, service, _store(request))
    try:
        num_tokens = len(await encode_conversation(service, await _chat_of(service, asked)))
    except InvalidRequest as error:
        raise asked.renamed(error) from error
    return JSONResponse({"object": "response.input_tokens", "input_tokens": num_tokens})


async def _read(body: InputTokensBody, service: GenerationService, store: TenantResponses) -> Asked:
    """Long conversations in a thread, as all work on long texts."""
    if isinstance(body.input, list) and len(body.input) > _MANY_ITEMS:
        return await service.large_work.run(lambda: Asked(body, store))
    return Asked(body, store)


async def _chat_of(service: GenerationService, asked: Asked, num_left_out: int = 0) -> ChatBody:
    if len(asked.items) > _MANY_ITEMS:
        return await service.large_work.run(lambda: asked.chat(num_left_out=num_left_out))
    return asked.chat(num_left_out=num_left_out)


async def _start(service: GenerationService, asked: Asked, *, cuts: bool) -> ChatRun:
    """`cuts`: what doesn't fit the context loses its oldest turns, as few as may be."""
    try:
        try:
            return await start_chat(service, await _chat_of(service, asked))
        except PromptTooLong:
            if not cuts:
                raise
        return await _start_cut(service, asked)
    except InvalidRequest as error:
        raise asked.renamed(error) from error


async def _start_cut(service: GenerationService, asked: Asked) -> ChatRun:
    """Raises PromptTooLong where the last turn alone doesn't fit."""
    turns, fits = asked.turns, dict[int, bool]()
    max_model_len = service.engine.max_model_len
    while (cut := fitting_cut(turns, fits)) is not None:
        num_tokens = len(await encode_conversation(service, await _chat_of(service, asked, cut)))
        fits[cut] = num_tokens < max_model_len
    least = min((cut for cut, is_fitting in fits.items() if is_fitting), default=turns[-1] if turns else 0)
    return await start_chat(service, await _chat_of(service, asked, least))


async def get_response(request: Request) -> Response:
    if request.query_params.get("stream", "false").lower() not in ("false", "0", ""):
        raise InvalidRequest("stream: a stored response is given whole; ask for it again.", param="stream")
    return JSONResponse(_store(request).get(request.path_params["name"]).response)


async def list_input_items(request: Request) -> Response:
    stored = _store(request).get(request.path_params["name"])
    return JSONResponse(list_items(stored.items[: stored.num_input], request.query_params))


async def cancel_response(request: Request) -> Response:
    stored = _store(request).get(request.path_params["name"])
    if stored.task is None:
        raise InvalidRequest("Only a response made in the background can be cancelled.")
    stored.task.cancel()
    await asyncio.wait([stored.task])
    return JSONResponse(stored.response)


async def delete_response(request: Request) -> Response:
    name = request.path_params["name"]
    _store(request).delete(name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


def _store(request: Request) -> TenantResponses:
    """What the request's tenant has stored: of others' responses nothing is found."""
    service: GenerationService = request.app.state.service
    return service.responses.of(current_tenant().name)


class ResponseTask:
    """One response while it is made, and its place in the store."""

    def __init__(
        self,
        run: ChatRun,
        writer: ResponseWriter,
        conversation: list[Any],
        store: TenantResponses | None,
    ) -> None:
        self.run = run
        self.writer = writer
        self._conversation = conversation
        self._store = store
        self._stored = StoredResponse(writer.response, conversation, len(conversation))

    async def collect(self) -> None:
        """Make it to its end, whole. Raises EngineError."""
        async with self.run as run:
            async for events in run.steps():
                self.writer.feed(events)
        self.writer.end(self.run.usage)
        self.keep()

    def break_off(self) -> None:
        """Its client has left, or wants no more of it: what there is stays."""
        self.writer.cancel(self.run.usage)
        self.keep()

    def fail(self, error: EngineError) -> list[dict[str, Any]]:
        """It can't be completed; the events that say so."""
        told = self.writer.fail(error)
        self.keep()
        return told

    def keep(self) -> None:
        if self._store is not None:
            self._stored.items = [*self._conversation, *read_items(self.writer.response["output"])]
            self._store.put(self._stored)

    def in_background(self) -> dict[str, Any]:
        """Begin; the response as it is now."""
        self._stored.task = asyncio.create_task(self._collect_in_background())
        self.keep()
        return dict(self.writer.response)

    async def _collect_in_background(self) -> None:
        """A task's root: whatever ends it stands in the response."""
        try:
            await self.collect()
        except asyncio.CancelledError:
            self.break_off()
        except EngineError as error:
            self.fail(error)


class ResponseObject:
    """An ASGI response: the object, once it is complete."""

    def __init__(self, making: ResponseTask) -> None:
        self._making = making

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await unless_client_leaves(receive, self._collect)
        if response is not None:
            await response(scope, receive, send)

    async def _collect(self) -> Response:
        try:
            await self._making.collect()
        except EngineError as error:
            return error_response(error)
        return JSONResponse(self._making.writer.response)


class ResponseStream:
    """An ASGI response: the events of a response as it is made; the last one says how it ended."""

    def __init__(self, making: ResponseTask) -> None:
        self._making = making
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stream() -> EngineError | None:
            try:
                await self._stream(send)
            except EngineError as error:
                return error
            except asyncio.CancelledError:
                if self._has_begun:  # else nobody knows its id
                    self._making.break_off()
                raise
            return None

        error = await unless_client_leaves(receive, stream)
        if error is not None and not self._has_begun:
            await error_response(error)(scope, receive, send)
        elif error is not None:
            log.warning("A stream ends with an error: %s", error)
            await self._send(send, self._making.fail(error))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, send: Send) -> None:
        writer = self._making.writer
        async with self._making.run as run:
            async for events in run.steps():
                told = writer.feed(events) if self._has_begun else [*writer.start(), *writer.feed(events)]
                if told:
                    await self._send(send, told)
        told = writer.end(self._making.run.usage)
        self._making.keep()  # before its client hears of the end, and asks for it
        await self._send(send, told)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, events: list[dict[str, Any]]) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        lines = [
            f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events
        ]
        await send({"type": "http.response.body", "body": "".join(lines).encode(), "more_body": True})


_REPEATED = {"reasoning", "text", "tool_choice", "tools"}  # what is long beside them is not dumped


def _new_response(name: str, body: ResponsesBody, model: str) -> dict[str, Any]:
    """A response that has just begun; what was asked for stands in it, as OpenAI's do."""
    asked = body.model_dump(mode="json", by_alias=True, exclude_none=True, include=_REPEATED)
    return {
        "id": name,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": body.background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None, **asked.get("reasoning", {})},
        "safety_identifier": body.safety_identifier,
        **({"service_tier": "default"} if body.service_tier else {}),
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, **asked.get("text", {})},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": runnable(asked.get("tools", [])),
        "top_p": body.top_p,
        "truncation": body.truncation,
        "usage": None,
        "user": body.user,
    }
