"""Paths of vLLM or OpenAI that this engine does not support: each returns 501 with the reason.

A plain 404 would leave the caller wondering whether the path is misspelt.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from engine.server.http.errors import UnsupportedRoute

_NO_SCALE_OUT = "the engine renders, generates and parses in one process"
_NO_SPEECH = "the engine supports text only"
_ONE_DEVICE = "the engine runs on one device"
_NO_TRAINING = "weights are loaded from the checkpoint and never change"

UNSUPPORTED_ROUTES: dict[tuple[str, str], str] = {
    ("POST", "/v1/systemone"): "it belongs to the protocol of a single model",
    ("POST", "/invocations"): "call the route directly, such as /v1/chat/completions",
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
    ("POST", "/v1/audio/transcriptions"): _NO_SPEECH,
    ("POST", "/v1/audio/translations"): _NO_SPEECH,
    ("POST", "/classify"): "use /pooling or /score",
    ("POST", "/reset_mm_cache"): "the caches hold text only",
    ("POST", "/reset_encoder_cache"): "the caches hold text only",
    ("POST", "/release_kv_cache_memory"): "use /sleep?level=1",
    ("POST", "/start_profile"): "profile the process from outside",
    ("POST", "/stop_profile"): "profile the process from outside",
    ("POST", "/collective_rpc"): "there are no workers to call",
    ("POST", "/update_weights"): _NO_TRAINING,
    ("GET", "/redoc"): "use /docs",
}


async def unsupported_route(request: Request) -> Response:
    """Always raises UnsupportedRoute."""
    path = request.url.path
    raise UnsupportedRoute(
        f"{path} is not supported by this engine: {UNSUPPORTED_ROUTES[request.method, path]}."
    )
