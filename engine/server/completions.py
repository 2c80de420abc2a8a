"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from engine.errors import InvalidRequest
from engine.server.answer import FinishedChoice, StreamedAnswer, WholeAnswer
from engine.server.body import check, read_json_object
from engine.server.gate import request_id_of
from engine.server.generation import Usage
from engine.server.protocol import CompletionBody
from engine.server.refused_fields import COMPLETION
from engine.server.sampling_params import TokenLimit
from engine.server.service import Prompt, Service
from engine.server.stream import CompletionChunks, usage_object

_DEFAULT_MAX_TOKENS = 16


async def create_completion(request: Request) -> ASGIApp:
    service: Service = request.app.state.service
    body = check(await read_json_object(request), CompletionBody, COMPLETION)
    service.model.check_name(body.model)
    prompts = [await _to_prompt(service, prompt, body) for prompt in body.prompt]
    generation, choices = service.begin(body, prompts)
    head = {
        "id": f"cmpl-{request_id_of(request, body.request_id)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model or service.model.name,
        "system_fingerprint": None,
    }
    if body.stream:
        return StreamedAnswer(
            generation,
            CompletionChunks(head, include_usage=body.include_usage, continuous_usage=body.continuous_usage),
        )
    return WholeAnswer(generation, choices, lambda finished, usage: _to_object(head, finished, usage))


async def _to_prompt(service: Service, prompt: str | list[int], body: CompletionBody) -> Prompt:
    if isinstance(prompt, str):
        token_ids = await service.encode(prompt, add_special_tokens=body.add_special_tokens)
        text = prompt
    else:
        service.model.check_token_ids(prompt, "prompt")
        token_ids = list(prompt)
        text = service.model.tokenizer.decode(token_ids, skip_special_tokens=False) if body.echo else ""
    if not token_ids:
        raise InvalidRequest("The prompt is empty: it has to hold at least one token.", param="prompt")
    asked = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    max_tokens = TokenLimit(asked, "max_tokens", "prompt").within(
        service.engine.max_model_len, num_prompt_tokens=len(token_ids), min_tokens=body.min_tokens
    )
    return Prompt(token_ids, max_tokens, echo=text if body.echo else "")


def _to_object(head: dict[str, Any], choices: Sequence[FinishedChoice], usage: Usage) -> dict[str, Any]:
    return {
        **head,
        "choices": [
            {
                "index": choice.index,
                "text": choice.text,
                "logprobs": None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            for choice in choices
        ],
        "usage": usage_object(usage),
    }
