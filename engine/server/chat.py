"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from engine.server.answer import FinishedChoice, StreamedAnswer, WholeAnswer
from engine.server.body import LARGE_BYTES, check, read_json_object
from engine.server.gate import request_id_of
from engine.server.generation import Usage
from engine.server.protocol import ChatBody, ConversationBody
from engine.server.refused_fields import CHAT
from engine.server.sampling_params import TokenLimit
from engine.server.service import Prompt, Service
from engine.server.stream import ChatChunks, usage_object


async def create_chat_completion(request: Request) -> ASGIApp:
    service: Service = request.app.state.service
    body = check(await read_json_object(request), ChatBody, CHAT)
    service.model.check_name(body.model)
    # OpenAI: with "none" the model calls no tool, so it isn't shown any.
    token_ids = await encode_conversation(service, body, with_tools=body.tool_choice != "none")
    max_tokens = _token_limit(service, body).within(
        service.engine.max_model_len, num_prompt_tokens=len(token_ids), min_tokens=body.min_tokens
    )
    generation, choices = service.begin(body, [Prompt(token_ids, max_tokens)])
    request_id = f"chatcmpl-{request_id_of(request, body.request_id)}"
    model = body.model or service.model.name
    if body.stream:
        return StreamedAnswer(
            generation,
            ChatChunks(
                _head(request_id, "chat.completion.chunk", model),
                include_usage=body.include_usage,
                continuous_usage=body.continuous_usage,
            ),
        )
    head = _head(request_id, "chat.completion", model)
    return WholeAnswer(generation, choices, lambda finished, usage: _to_object(head, finished, usage))


async def encode_conversation(
    service: Service, body: ConversationBody, *, with_tools: bool = True
) -> list[int]:
    """The prompt's tokens, by the chat template; long conversations are rendered in a thread."""
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] if with_tools else []

    def render() -> str:
        return service.model.template.render(
            messages,
            tools=tools or None,
            add_generation_prompt=body.add_generation_prompt,
            variables=body.chat_template_kwargs,
        )

    size = sum(len(str(message.get("content"))) for message in messages)
    text = render() if size * 4 < LARGE_BYTES else await asyncio.to_thread(render)
    return await service.encode(text, add_special_tokens=body.add_special_tokens)


def _token_limit(service: Service, body: ChatBody) -> TokenLimit:
    if body.max_completion_tokens is not None:
        return TokenLimit(body.max_completion_tokens, "max_completion_tokens", "messages")
    asked = body.max_tokens
    default = service.model.defaults.get("max_new_tokens")
    if asked is None and default is not None:
        asked = max(body.min_tokens, min(int(default), service.engine.max_model_len))
    return TokenLimit(asked, "max_tokens", "messages")


def _head(request_id: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": request_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def _to_object(head: dict[str, Any], choices: Sequence[FinishedChoice], usage: Usage) -> dict[str, Any]:
    return {
        **head,
        "choices": [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            for choice in choices
        ],
        "usage": usage_object(usage),
    }
