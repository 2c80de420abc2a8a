"""Routes for health, version, load, metrics, models, tokenization."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine import __version__
from engine.server.generation.chat_run import encode_conversation
from engine.server.http.errors import NotReady, error_response
from engine.server.http.large_work import GilThrottle
from engine.server.model.model_service import ModelService
from engine.server.protocol.body_reader import check_parsed, read_body, read_json_object
from engine.server.protocol.field_rules import TOKENIZE
from engine.server.protocol.tokenize_bodies import DetokenizeBody, TokenizeChatBody, TokenizePromptBody

_MANY_TOKENS = 4096  # above this, the work is done in a thread


async def health(request: Request) -> Response:
    """200 once requests are accepted: the model is loaded, the engine is alive, no shutdown has begun."""
    if _service(request).is_ready:
        return Response()
    return error_response(NotReady("The model is still loading, or the engine is stopping."))


async def ping(request: Request) -> Response:
    return await health(request)


async def version(request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def load(request: Request) -> Response:
    return JSONResponse({"server_load": _service(request).engine.num_unfinished})


async def metrics(request: Request) -> Response:
    service = _service(request)
    return Response(service.metrics.render(), headers={"content-type": service.metrics.CONTENT_TYPE})


async def list_models(request: Request) -> Response:
    service = _service(request)
    return JSONResponse({"object": "list", "data": service.model.cards(service.engine.max_model_len)})


async def get_model(request: Request) -> Response:
    service = _service(request)
    name = request.path_params["name"]
    service.model.check_name(name)
    cards = {card["id"]: card for card in service.model.cards(service.engine.max_model_len)}
    return JSONResponse(cards.get(name) or {**cards[service.model.name], "id": name})


async def tokenize(request: Request) -> Response:
    service = _service(request)
    raw = await read_json_object(request)
    body: TokenizeChatBody | TokenizePromptBody
    if "messages" in raw:
        body = await check_parsed(request, raw, TokenizeChatBody, TOKENIZE)
        service.model.check_name(body.model)
        token_ids = await encode_conversation(service, body)
    else:
        body = await check_parsed(request, raw, TokenizePromptBody, TOKENIZE)
        service.model.check_name(body.model)
        token_ids = await service.encode(body.prompt, add_special_tokens=body.add_special_tokens, output=None)
    wants_strings, max_model_len = body.return_token_strs, service.engine.max_model_len
    tokenizer = service.model.tokenizer

    def write() -> bytes:
        tokens, strings = _to_json_list(token_ids), "null"
        if wants_strings:
            strings = _to_json_list(token_ids, tokenizer.token_strings)
        return (
            f'{{"count":{len(token_ids)},"max_model_len":{max_model_len},"tokens":{tokens},'
            f'"token_strs":{strings}}}'
        ).encode()

    is_large = len(token_ids) > _MANY_TOKENS
    content = await service.large_work.run(write) if is_large else write()
    return Response(content, media_type="application/json")


async def detokenize(request: Request) -> Response:
    service = _service(request)
    body = await read_body(request, DetokenizeBody)
    service.model.check_name(body.model)
    service.model.check_token_ids(body.tokens, "tokens")
    tokenizer, tokens = service.model.tokenizer, body.tokens
    if len(tokens) > _MANY_TOKENS:
        text = await service.large_work.run_released(
            lambda: tokenizer.decode_without_gil(tokens, skip_special_tokens=False)
        )
    else:
        text = tokenizer.decode(tokens, skip_special_tokens=False)
    return JSONResponse({"prompt": text})


def _to_json_list(token_ids: list[int], show: Callable[[list[int]], list[Any]] = list) -> str:
    """A JSON list, written in parts: one long call would block all other threads."""
    throttle, parts = GilThrottle(), []
    for start in range(0, len(token_ids), _MANY_TOKENS):
        part = show(token_ids[start : start + _MANY_TOKENS])
        parts.append(json.dumps(part, ensure_ascii=False, separators=(",", ":"))[1:-1])
        throttle.pause()
    return f"[{','.join(parts)}]"


def _service(request: Request) -> ModelService:
    service: ModelService = request.app.state.service
    return service
