"""The small routes: health, version, load, metrics, models, tokenize, detokenize."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine import __version__
from engine.server.body import check, read_json_object
from engine.server.chat_run import encode_conversation
from engine.server.errors import NotReady, error_response
from engine.server.field_rules import TOKENIZE
from engine.server.model_service import ModelService
from engine.server.protocol import DetokenizeBody, TokenizeChatBody, TokenizePromptBody


async def health(request: Request) -> Response:
    """200 once requests are taken: the model is loaded, the engine alive, no shutdown begun."""
    if _service(request).is_ready:
        return Response()
    return error_response(NotReady("The model is still loading, or the engine is ending."))


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
    card = service.model.card(service.engine.max_model_len)
    return JSONResponse({"object": "list", "data": [{**card, "id": name} for name in service.model.names]})


async def get_model(request: Request) -> Response:
    service = _service(request)
    name = request.path_params["name"]
    service.model.check_name(name)
    return JSONResponse({**service.model.card(service.engine.max_model_len), "id": name})


async def tokenize(request: Request) -> Response:
    service = _service(request)
    raw = await read_json_object(request)
    body: TokenizeChatBody | TokenizePromptBody
    if "messages" in raw:
        body = check(raw, TokenizeChatBody, TOKENIZE)
        service.model.check_name(body.model)
        token_ids = await encode_conversation(service, body)
    else:
        body = check(raw, TokenizePromptBody, TOKENIZE)
        service.model.check_name(body.model)
        token_ids = await service.encode(body.prompt, add_special_tokens=body.add_special_tokens, output=None)
    strings = service.model.tokenizer.token_strings(token_ids) if body.return_token_strs else None
    return JSONResponse(
        {
            "count": len(token_ids),
            "max_model_len": service.engine.max_model_len,
            "tokens": token_ids,
            "token_strs": strings,
        }
    )


async def detokenize(request: Request) -> Response:
    service = _service(request)
    body = check(await read_json_object(request), DetokenizeBody)
    service.model.check_name(body.model)
    service.model.check_token_ids(body.tokens, "tokens")
    return JSONResponse({"prompt": service.model.tokenizer.decode(body.tokens, skip_special_tokens=False)})


def _service(request: Request) -> ModelService:
    service: ModelService = request.app.state.service
    return service
