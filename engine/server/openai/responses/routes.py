"""POST /v1/responses, and the routes for stored responses."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from engine.errors import EngineError, InvalidRequest, PromptTooLong
from engine.server.generation.chat_output import ChatOutput
from engine.server.generation.chat_run import ChatRun, encode_conversation, prepare_chat
from engine.server.generation.generation import Generation
from engine.server.generation.output import EventStream, WholeBody, collect
from engine.server.generation.response_store import StoredResponse, TenantResponses
from engine.server.generation.service import GenerationService
from engine.server.http.request_ids import new_response_id
from engine.server.http.tenants import current_tenant
from engine.server.openai.responses.bodies import RULES, InputTokensBody, ResponsesBody
from engine.server.openai.responses.items import read_items
from engine.server.openai.responses.listing import list_items
from engine.server.openai.responses.tools import runnable
from engine.server.openai.responses.translate import ConversationRequest, fitting_cut
from engine.server.openai.responses.writer import ResponseWriter
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.chat_body import ChatBody

_MANY_ITEMS = 500  # above this, reading them takes milliseconds and is done in a thread


async def create_response(request: Request) -> ASGIApp:
    service: GenerationService = request.app.state.service
    body = await read_body(request, ResponsesBody, RULES)
    service.model.check_name(body.model)
    store = _store(request)
    conversation = await _read(body, service, store)
    # Never the request's id, which clients choose and others could guess: responses are stored under it.
    name = f"resp_{new_response_id()}"
    run = await _start(service, conversation, truncates=body.truncation == "auto")
    response = _new_response(name, body, body.model or service.model.name)
    stored = StoredResponse(response, conversation.items, len(conversation.items))

    def save() -> None:
        if body.store:
            stored.items = [*conversation.items, *read_items(response["output"])]
            store.put(stored)

    writer = ResponseWriter(response, conversation.toolbox, seals_reasoning=body.seals_reasoning, on_end=save)
    output = ChatOutput(run, writer)
    if body.background:
        return _run_in_background(run.generation, output, stored, store)
    if body.stream:
        return EventStream(run.generation, output, service.large_work)
    return WholeBody(run.generation, output)


async def count_input_tokens(request: Request) -> Response:
    service: GenerationService = request.app.state.service
    body = await read_body(request, InputTokensBody, RULES)
    service.model.check_name(body.model)
    conversation = await _read(body, service, _store(request))
    try:
        num_tokens = len(await encode_conversation(service, await _chat_of(service, conversation)))
    except InvalidRequest as error:
        raise conversation.renamed(error) from error
    return JSONResponse({"object": "response.input_tokens", "input_tokens": num_tokens})


async def _read(
    body: InputTokensBody, service: GenerationService, store: TenantResponses
) -> ConversationRequest:
    """Read long conversations in a thread."""
    if isinstance(body.input, list) and len(body.input) > _MANY_ITEMS:
        return await service.large_work.run(lambda: ConversationRequest(body, store))
    return ConversationRequest(body, store)


async def _chat_of(
    service: GenerationService, conversation: ConversationRequest, num_dropped: int = 0
) -> ChatBody:
    if len(conversation.items) > _MANY_ITEMS:
        return await service.large_work.run(lambda: conversation.chat(num_dropped=num_dropped))
    return conversation.chat(num_dropped=num_dropped)


async def _start(
    service: GenerationService, conversation: ConversationRequest, *, truncates: bool
) -> ChatRun:
    """`truncates`: drop the fewest oldest turns so that the rest fits the context."""
    try:
        try:
            return await prepare_chat(service, await _chat_of(service, conversation))
        except PromptTooLong:
            if not truncates:
                raise
        return await _start_truncated(service, conversation)
    except InvalidRequest as error:
        raise conversation.renamed(error) from error


async def _start_truncated(service: GenerationService, conversation: ConversationRequest) -> ChatRun:
    """Raises PromptTooLong if not even the last turn fits."""
    turns, fits = conversation.turns, dict[int, bool]()
    max_model_len = service.engine.max_model_len
    while (cut := fitting_cut(turns, fits)) is not None:
        num_tokens = len(await encode_conversation(service, await _chat_of(service, conversation, cut)))
        fits[cut] = num_tokens < max_model_len
    smallest = min((cut for cut, is_fitting in fits.items() if is_fitting), default=turns[-1] if turns else 0)
    return await prepare_chat(service, await _chat_of(service, conversation, smallest))


async def get_response(request: Request) -> Response:
    if request.query_params.get("stream", "false").lower() not in ("false", "0", ""):
        raise InvalidRequest(
            "stream is not supported for stored responses: retrieve them without it.", param="stream"
        )
    return JSONResponse(_store(request).get(request.path_params["name"]).response)


async def list_input_items(request: Request) -> Response:
    stored = _store(request).get(request.path_params["name"])
    return JSONResponse(list_items(stored.items[: stored.num_input_items], request.query_params))


async def cancel_response(request: Request) -> Response:
    stored = _store(request).get(request.path_params["name"])
    if stored.task is None:
        raise InvalidRequest("Only a background response can be cancelled.")
    stored.task.cancel()
    await asyncio.wait([stored.task])
    return JSONResponse(stored.response)


async def delete_response(request: Request) -> Response:
    name = request.path_params["name"]
    _store(request).delete(name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


def _store(request: Request) -> TenantResponses:
    """The stored responses of the request's tenant."""
    service: GenerationService = request.app.state.service
    return service.responses.of(current_tenant().name)


def _run_in_background(
    generation: Generation, output: ChatOutput, stored: StoredResponse, store: TenantResponses
) -> JSONResponse:
    """Start the response; what it is now."""

    async def run() -> None:
        """The root of a task: any outcome is recorded in the response."""
        try:
            await collect(generation, output)
        except asyncio.CancelledError:
            output.cancel(generation.read_usage())
        except EngineError as error:
            output.fail(error)

    stored.task = asyncio.create_task(run())
    store.put(stored)
    return JSONResponse(stored.response)


_REPEATED_FIELDS = {"reasoning", "text", "tool_choice", "tools"}  # other long fields are not dumped


def _new_response(name: str, body: ResponsesBody, model: str) -> dict[str, Any]:
    """The initial response object, which repeats the request's fields, as OpenAI's does."""
    repeated = body.model_dump(mode="json", by_alias=True, exclude_none=True, include=_REPEATED_FIELDS)
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
        "reasoning": {"effort": None, "summary": None, **repeated.get("reasoning", {})},
        "safety_identifier": body.safety_identifier,
        **({"service_tier": "default"} if body.service_tier else {}),
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, **repeated.get("text", {})},
        "tool_choice": repeated.get("tool_choice", "auto"),
        "tools": runnable(repeated.get("tools", [])),
        "top_p": body.top_p,
        "truncation": body.truncation,
        "usage": None,
        "user": body.user,
    }
