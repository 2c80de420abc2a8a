"""Routes that load and unload LoRA adapters while the server runs, with vLLM's bodies and sentences.

Whoever may call them can have the server read any directory, so Berth lets only admins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from engine.core.adapter import check_name
from engine.server.generation.service import GenerationService
from engine.server.http.errors import UnknownRoute
from engine.server.protocol import body_limits
from engine.server.protocol.body_reader import read_body
from engine.server.protocol.request_body import Ignored, RequestBody, null_as


class LoadAdapterBody(RequestBody):
    size_limits = body_limits.LOAD_ADAPTER

    lora_name: str = Field(
        min_length=1, description="The model's name in requests: no colon, no path, no line ends."
    )
    lora_path: str = Field(min_length=1, description="A directory that PEFT has saved.")
    load_inplace: Annotated[bool, null_as(False)] = Field(
        default=False, description="Replace an adapter of this name; requests that run keep theirs."
    )


class UnloadAdapterBody(RequestBody):
    size_limits = body_limits.UNLOAD_ADAPTER

    lora_name: str = Field(min_length=1)
    lora_int_id: Ignored = None


async def load_adapter(request: Request) -> Response:
    service = _service(request)
    body = await read_body(request, LoadAdapterBody)
    check_name(body.lora_name)
    await service.load_adapter(body.lora_name, Path(body.lora_path), in_place=body.load_inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(request: Request) -> Response:
    service = _service(request)
    body = await read_body(request, UnloadAdapterBody)
    service.model.adapters.unload(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _service(request: Request) -> GenerationService:
    service: GenerationService = request.app.state.service
    if not service.config.takes_adapters:
        path = request.url.path
        raise UnknownRoute(f"{path} is available only if the server is started with --enable-lora.")
    return service
