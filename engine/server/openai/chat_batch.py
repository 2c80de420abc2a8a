"""POST /v1/chat/completions/batch: several conversations, one choice each, as in vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from engine.errors import InvalidRequest
from engine.server.generation.chat_run import ChatRun, prepare_chat
from engine.server.generation.generation import Generation, ReadUsage
from engine.server.generation.output import WholeBody
from engine.server.generation.service import GenerationService, check_batch
from engine.server.http.request_ids import request_id_of
from engine.server.openai.chat import describe_completion
from engine.server.openai.choice_details import ChoiceDetails
from engine.server.openai.chunks import head_of
from engine.server.openai.completion_output import FinishedChoice, WholeCompletion
from engine.server.protocol.batch_body import BatchChatBody
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.field_rules import CHAT_BATCH


async def create_chat_batch(request: Request) -> ASGIApp:
    service: GenerationService = request.app.state.service
    body = await read_body(request, BatchChatBody, CHAT_BATCH)
    service.check_capacity(len(body.messages))
    chats = await _prepare_all(service, body)
    choices = [choice for chat in chats for choice in chat.choices]
    readers = {index: reader for chat in chats for index, reader in chat.readers.items()}
    details = ChoiceDetails(body, service.model.tokenizer)
    request_id = f"chatcmpl-{request_id_of(request, body.request_id)}"
    head = head_of(request_id, "chat.completion", body.model or service.model.name)

    def to_object(finished: Sequence[FinishedChoice], read_usage: ReadUsage) -> dict[str, Any]:
        return describe_completion(head, details, readers, finished, read_usage)

    generation = Generation(service.engine, service.metrics, choices)
    return WholeBody(generation, WholeCompletion(choices, to_object, service.large_work))


async def _prepare_all(service: GenerationService, body: BatchChatBody) -> list[ChatRun]:
    """Prepare the chats one by one; other tasks can run in between."""
    prepared = []
    for index, conversation in enumerate(body.conversations()):
        try:
            prepared.append(await prepare_chat(service, conversation, first_index=index))
        except InvalidRequest as error:
            if error.param != "messages":
                raise
            raise error.renamed(error.message, f"messages[{index}]") from error
        await asyncio.sleep(0)
    requests = [choice.request for chat in prepared for choice in chat.choices]
    check_batch(body, requests, service.model.vocab_size)
    return prepared
