"""POST /v1/embeddings, /pooling and Cohere's /v2/embed."""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.errors import InvalidRequest
from engine.pooling.plan import Task
from engine.server.generation.chat_run import render_conversation
from engine.server.http.client_disconnect import CancellableResponse
from engine.server.http.errors import UnknownRoute
from engine.server.http.request_ids import choose_request_id
from engine.server.pooling.bodies import (
    COHERE_RULES,
    RULES,
    CohereEmbedBody,
    ConversationInputBody,
    InputBody,
    PoolingBody,
    PoolingConversationBody,
)
from engine.server.pooling.encode import Cut, Encoded
from engine.server.pooling.output import (
    encode_vector,
    json_response,
    list_response,
    to_base64,
    usage_of,
)
from engine.server.pooling.service import PoolingService
from engine.server.protocol.body_reader import check, read_json_object


async def create_embedding(request: Request) -> CancellableResponse:
    service: PoolingService = request.app.state.service
    _require_vectors(service, request.url.path)
    raw = _with_messages(await read_json_object(request))
    has_messages = "messages" in raw
    body = check(raw, ConversationInputBody, RULES) if has_messages else check(raw, InputBody, RULES)
    return CancellableResponse(partial(_answer, service, body, kind="embedding", prefix="embd"))


async def create_pooling(request: Request) -> CancellableResponse:
    """The output of the model's own task: vectors, or a score per label."""
    service: PoolingService = request.app.state.service
    raw = _with_messages(await read_json_object(request))
    body: PoolingBody | PoolingConversationBody
    has_messages = "messages" in raw
    body = check(raw, PoolingConversationBody, RULES) if has_messages else check(raw, PoolingBody, RULES)
    if body.task not in (None, service.plan.task):
        raise InvalidRequest(
            f"task {str(body.task)!r} is not supported: this model's task is {str(service.plan.task)!r}.",
            param="task",
        )
    return CancellableResponse(partial(_answer, service, body, kind="pooling", prefix="pool"))


async def create_cohere_embedding(request: Request) -> CancellableResponse:
    service: PoolingService = request.app.state.service
    _require_vectors(service, request.url.path)
    body = check(await read_json_object(request), CohereEmbedBody, COHERE_RULES)
    return CancellableResponse(partial(_answer_cohere, service, body))


async def _answer(
    service: PoolingService, body: InputBody | ConversationInputBody, *, kind: str, prefix: str
) -> Response:
    inputs, values = await pool_body(service, body)
    head = {
        "id": f"{prefix}-{choose_request_id(body.request_id)}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model or service.model.name,
        "usage": usage_of(inputs),
    }
    field = "embedding" if kind == "embedding" else "data"

    def item(index: int) -> dict[str, Any]:
        return {"object": kind, "index": index, field: encode_vector(values[index], body)}

    items = [partial(item, index) for index in range(len(values))]
    return await list_response(head, items, sum(map(len, values)), service.large_work)


async def pool_body(
    service: PoolingService, body: InputBody | ConversationInputBody
) -> tuple[list[Encoded], list[array[float]]]:
    """The body's inputs as tokens, and the values of each. Raises what `PoolingService.pool` raises."""
    service.model.check_name(body.model)
    service.check_dimensions(body.dimensions)
    cut = service.cut_of(body)
    if isinstance(body, InputBody):
        inputs = await service.encode_inputs(body.input, add_special_tokens=body.add_special_tokens, cut=cut)
    else:
        text = await render_conversation(service, body, with_tools=True)
        inputs = await service.encode_all(
            [text], param="messages", add_special_tokens=body.add_special_tokens, cut=cut
        )
    values = await service.pool(
        inputs,
        param="input" if isinstance(body, InputBody) else "messages",
        use_activation=service.use_activation(body),
        dimensions=body.dimensions,
        priority=body.priority,
        request_id=body.request_id,
    )
    return inputs, values


def _with_messages(raw: dict[str, Any]) -> dict[str, Any]:
    """Accept a conversation in `input`, as vLLM does."""
    given = raw.get("input")
    is_conversation = (
        isinstance(given, list) and bool(given) and all(isinstance(message, dict) for message in given)
    )
    if "messages" in raw or not is_conversation:
        return raw
    return {**{name: value for name, value in raw.items() if name != "input"}, "messages": given}


def _require_vectors(service: PoolingService, path: str) -> None:
    if service.plan.task is not Task.EMBED:
        raise UnknownRoute(
            f"{path} needs an embedding model, but this model classifies: use /pooling or /score."
        )


async def _answer_cohere(service: PoolingService, body: CohereEmbedBody) -> Response:
    service.model.check_name(body.model)
    service.check_dimensions(body.output_dimension, "output_dimension")
    prefix = _prefix_of(service.plan.prompts, body.input_type)
    param = "texts" if body.texts is not None else "inputs"
    cut = _cohere_cut(body, service.plan.max_model_len)
    inputs = await service.encode_all([prefix + text for text in body.all_texts], param=param, cut=cut)
    if body.truncate == "NONE":
        _check_cohere_lengths(inputs, body.max_tokens)
    values = await service.pool(
        inputs,
        param=param,
        use_activation=service.plan.use_activation,
        dimensions=body.output_dimension,
        priority=body.priority,
    )
    num_tokens = sum(len(encoded.token_ids) for encoded in inputs)
    kinds = body.embedding_types or ["float"]
    return json_response(
        {
            "id": f"embd-{choose_request_id(None)}",
            "embeddings": {kind: [_as_cohere(vector, kind) for vector in values] for kind in kinds},
            **({"texts": body.texts} if body.texts is not None else {}),
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": num_tokens}},
            "response_type": "embeddings_by_type",
        }
    )


def _cohere_cut(body: CohereEmbedBody, limit: int) -> Cut | None:
    if body.truncate == "NONE":
        return None
    max_tokens = limit if body.max_tokens is None else min(body.max_tokens, limit)
    return Cut(max_tokens, "left" if body.truncate == "START" else "right")


def _check_cohere_lengths(inputs: Sequence[Encoded], max_tokens: int | None) -> None:
    longest = max(len(encoded.token_ids) for encoded in inputs)
    if max_tokens is not None and longest > max_tokens:
        raise InvalidRequest(
            f"A text has {longest} tokens, which exceeds max_tokens {max_tokens}, and truncate is NONE.",
            param="max_tokens",
        )


def _prefix_of(prompts: Mapping[str, str], input_type: str | None) -> str:
    if input_type is None:
        return ""
    if input_type not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise InvalidRequest(
            f"input_type {input_type!r} is unknown: this model has prompts for: {known}.",
            param="input_type",
        )
    return prompts[input_type]


def _as_cohere(vector: array[float], kind: str) -> list[float] | list[int] | str:
    if kind == "float":
        return vector.tolist()
    if kind == "base64":
        return to_base64(vector)
    if len(vector) % 8:
        raise InvalidRequest(
            f"embedding_types {kind} needs a vector size that is a multiple of 8, not {len(vector)}.",
            param="embedding_types",
        )
    packed = [_pack_signs(vector[start : start + 8]) for start in range(0, len(vector), 8)]
    return packed if kind == "ubinary" else [byte - 128 for byte in packed]


def _pack_signs(eight: Sequence[float]) -> int:
    """Signs as bits, most significant bit first."""
    return sum((value >= 0) << (7 - place) for place, value in enumerate(eight))
