"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from engine.errors import InvalidRequest
from engine.server.generation.constraints import find_spec
from engine.server.generation.generation import Choice, Generation, ReadUsage
from engine.server.generation.output import EventStream, WholeBody
from engine.server.generation.sampling_params import TokenLimit
from engine.server.generation.service import GenerationService, Prompt
from engine.server.http.request_ids import request_id_of
from engine.server.model.truncation import Truncation
from engine.server.openai.choice_details import ChoiceDetails
from engine.server.openai.chunks import CompletionChunks, head_of, usage_object
from engine.server.openai.completion_output import FinishedChoice, WholeCompletion
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.completion_body import CompletionBody
from engine.server.protocol.field_rules import COMPLETION


async def create_completion(request: Request) -> ASGIApp:
    service: GenerationService = request.app.state.service
    body = await read_body(request, CompletionBody, COMPLETION)
    generation, choices = await prepare_completion(service, body)
    request_id = f"cmpl-{request_id_of(request, body.request_id)}"
    head = head_of(request_id, "text_completion", body.model or service.model.name)
    details = ChoiceDetails(body, service.model.tokenizer, echo=body.echo)
    if body.stream:
        chunks = CompletionChunks(
            head, details, include_usage=body.include_usage, continuous_usage=body.continuous_usage
        )
        return EventStream(generation, chunks, service.large_work)
    to_object = partial(_to_object, head, details)
    return WholeBody(generation, WholeCompletion(choices, to_object, service.large_work))


async def prepare_completion(
    service: GenerationService, body: CompletionBody
) -> tuple[Generation, list[Choice]]:
    """Check the rest of the body and encode its prompts; runs once the generation is entered.

    Raises InvalidRequest and QueueFull.
    """
    service.model.check_name(body.model)
    prompts = await _to_prompts(service, body)
    make_constraint = await service.constraint_for(find_spec(body))
    return await service.create_generation(body, prompts, make_constraint=make_constraint)


async def _to_prompts(service: GenerationService, body: CompletionBody) -> list[Prompt]:
    requested = body.max_tokens
    truncation = Truncation.of(body, service.engine.max_model_len, needs_output=requested != 0)
    service.check_num_sequences(len(body.prompt), body.n)
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    if texts:
        encoded = await service.encode_each(
            texts,
            add_special_tokens=body.add_special_tokens,
            truncation=truncation,
            output=1 if requested is None else requested,
        )
    else:
        for prompt in body.prompt:
            service.model.check_token_ids(prompt, "prompt")
        encoded = [list(p) if truncation is None else truncation.cut(p) for p in body.prompt]
    return [
        _to_prompt(service, body, prompt, token_ids, is_complete=truncation is None)
        for prompt, token_ids in zip(body.prompt, encoded, strict=True)
    ]


def _to_prompt(
    service: GenerationService,
    body: CompletionBody,
    prompt: str | list[int],
    token_ids: list[int],
    *,
    is_complete: bool,
) -> Prompt:
    """`is_complete`: the prompt was not truncated."""
    requested = body.max_tokens
    if not token_ids:
        raise InvalidRequest("The prompt is empty: it must have at least one token.", param="prompt")
    max_tokens = TokenLimit(requested, "max_tokens", "prompt").resolve(
        service.engine.max_model_len, num_prompt_tokens=len(token_ids), min_tokens=body.min_tokens
    )
    if not body.echo:
        return Prompt(token_ids, max_tokens)
    if isinstance(prompt, str) and is_complete:
        return Prompt(token_ids, max_tokens, echo=prompt, is_echoed=True)
    text = service.model.tokenizer.decode(token_ids, skip_special_tokens=False)
    return Prompt(token_ids, max_tokens, echo=text, is_echoed=True)


def _to_object(
    head: dict[str, Any], details: ChoiceDetails, choices: Sequence[FinishedChoice], read_usage: ReadUsage
) -> dict[str, Any]:
    return {
        **head,
        "choices": [
            {
                "index": choice.index,
                "text": choice.text,
                "logprobs": details.completion_logprobs(choice.deltas),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                **details.token_ids(choice.deltas, is_first=True),
                **details.prompt_logprobs(choice.deltas),
            }
            for choice in choices
        ],
        "usage": usage_object(read_usage()),
    }
