"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from engine.server.generation.chat_events import (
    ChoiceEnded,
    ChoiceReader,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from engine.server.generation.chat_run import prepare_chat
from engine.server.generation.generation import ReadUsage
from engine.server.generation.output import EventStream, WholeBody
from engine.server.generation.service import GenerationService
from engine.server.http.request_ids import request_id_of
from engine.server.openai.choice_details import ChoiceDetails
from engine.server.openai.chunks import ChatChunks, head_of, usage_object
from engine.server.openai.completion_output import FinishedChoice, WholeCompletion
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.field_rules import CHAT


async def create_chat_completion(request: Request) -> ASGIApp:
    service: GenerationService = request.app.state.service
    body = (await read_body(request, ChatBody, CHAT)).with_allowed_tools()
    run = await prepare_chat(service, body)
    prompt_text = run.prompt_text if body.return_prompt_text else None
    details = ChoiceDetails(body, service.model.tokenizer, prompt_text=prompt_text)
    request_id = f"chatcmpl-{request_id_of(request, body.request_id)}"
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    head = head_of(request_id, kind, body.model or service.model.name)
    if body.stream:
        chunks = ChatChunks(
            head,
            details,
            None if run.is_plain_content else run.readers,
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
        )
        return EventStream(run.generation, chunks, service.large_work)

    def to_object(choices: Sequence[FinishedChoice], read_usage: ReadUsage) -> dict[str, Any]:
        completion = describe_completion(head, details, run.readers, choices, read_usage)
        deltas = choices[0].deltas
        return {**completion, **details.prompt_fields(deltas[0]), **details.prompt_logprobs(deltas)}

    return WholeBody(run.generation, WholeCompletion(run.choices, to_object, service.large_work))


def describe_completion(
    head: dict[str, Any],
    details: ChoiceDetails,
    readers: Mapping[int, ChoiceReader],
    choices: Sequence[FinishedChoice],
    read_usage: ReadUsage,
) -> dict[str, Any]:
    """The response without its fields about the prompt."""
    described = [
        {
            **describe_choice(choice, readers[choice.index]),
            "logprobs": details.chat_logprobs(choice.deltas),
            **details.token_ids(choice.deltas),
        }
        for choice in choices
    ]
    return {**head, "choices": described, "usage": usage_object(read_usage())}


def describe_choice(choice: FinishedChoice, reader: ChoiceReader) -> dict[str, Any]:
    """The message and its finish reason, from the same events as in a stream."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    end_fields: dict[str, Any] = {}
    for event in (event for delta in choice.deltas for event in reader.read(delta)):
        match event:
            case ContentDelta(_, text):
                content.append(text)
            case ReasoningDelta(_, text):
                reasoning.append(text)
            case ToolCallDelta(_, number, call_id, name, arguments):
                call = calls.setdefault(
                    number, {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
                )
                call["function"]["arguments"] += arguments
            case ChoiceEnded(_, finish_reason, stop_reason):
                end_fields = {"finish_reason": finish_reason, "stop_reason": stop_reason}
    text = "".join(content)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text or (None if calls else ""),
        "refusal": None,
    }
    if reasoning:
        message["reasoning"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = list(calls.values())
    return {"index": choice.index, "message": message, **end_fields}
