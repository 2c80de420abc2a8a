"""What vLLM or OpenAI have a path for and this engine hasn't: each answers 501, with the reason.

A bare 404 would leave a caller to wonder whether the path is misspelt.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from engine.server.http.errors import NotImplementedHere

_NO_SCALE_OUT = "the engine is one process, which renders, generates and parses by itself"
_NO_LORA = "LoRA adapters are not supported"
_NO_SPEECH = "the engine reads and writes text"
_ONE_DEVICE = "the engine runs on one device"
_NO_TRAINING = "weights come from the checkpoint and stay as they are"

UNSUPPORTED: dict[tuple[str, str], str] = {
    ("POST", "/v1/systemone"): "it belongs to one model's own protocol",
    ("POST", "/invocations"): "use the route itself, such as /v1/chat/completions",
    ("POST", "/generative_scoring"): "use logprobs of /v1/completions",
    ("POST", "/scale_elastic_ep"): _ONE_DEVICE,
    ("POST", "/is_scaling_elastic_ep"): _ONE_DEVICE,
    ("GET", "/kv_event_sources"): "KV-cache events are not published",
    ("POST", "/v1/chat/completions/render"): _NO_SCALE_OUT,
    ("POST", "/v1/completions/render"): _NO_SCALE_OUT,
    ("POST", "/v1/messages/render"): _NO_SCALE_OUT,
    ("POST", "/v1/responses/compact"): "shorten the conversation yourself, or ask for truncation: auto",
    ("POST", "/v1/responses/render"): _NO_SCALE_OUT,
    ("POST", "/v1/chat/completions/derender"): _NO_SCALE_OUT,
    ("POST", "/v1/completions/derender"): _NO_SCALE_OUT,
    ("POST", "/inference/v1/generate"): "use /v1/completions with token ids and return_token_ids",
    ("POST", "/v1/load_lora_adapter"): _NO_LORA,
    ("POST", "/v1/unload_lora_adapter"): _NO_LORA,
    ("POST", "/v1/audio/transcriptions"): _NO_SPEECH,
    ("POST", "/v1/audio/translations"): _NO_SPEECH,
    ("POST", "/classify"): "use /pooling or /score",
    ("POST", "/reset_mm_cache"): "there is nothing but text in the caches",
    ("POST", "/reset_encoder_cache"): "there is nothing but text in the caches",
    ("POST", "/release_kv_cache_memory"): "use /sleep?level=1",
    ("POST", "/start_profile"): "profile the process from outside",
    ("POST", "/stop_profile"): "profile the process from outside",
    ("POST", "/collective_rpc"): "there are no workers to call",
    ("POST", "/update_weights"): _NO_TRAINING,
    ("GET", "/redoc"): "use /docs",
}


async def unsupported_route(request: Request) -> Response:
    """Raises NotImplementedHere, whatever is asked."""
    path = request.url.path
    raise NotImplementedHere(
        f"{path} is a path that others have and this engine doesn't: {UNSUPPORTED[request.method, path]}."
    )
