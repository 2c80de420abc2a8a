"""Serves protocols: an ASGI application that translates their requests for an inner one with OpenAI's API.

Other requests are passed on untouched, so that forwarding costs nothing. Of models it knows only their
`protocol`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from api.http.asgi import App, RawHeaders, Receive, Scope, Send
from api.http.buffered_body import BufferedBody, buffer_body
from api.http.client_errors import ClientGone
from api.http.dispatch import CLIENT_PATH, raw_path
from api.http.errors import RequestRefused
from api.http.named_model import InvalidBody, read_object
from api.http.off_loop import MAX_ON_LOOP_BYTES, off_loop
from api.http.request_times import COLLECTED, TIMES
from api.http.respond import request_id_of
from api.http.response_channel import as_translated, channel_of
from api.protocols.base import INVALID_REQUEST, ErrorDetail, LoadRequest, ProtocolAdapter, to_json
from api.protocols.errors import error_response, read_error
from api.protocols.request_translator import RequestInvalid, TranslatedRequest, read_request, too_long
from api.protocols.response_translator import ResponseTranslator, TranslationStopped, send_json
from api.telemetry.access_log import log_answered

MAX_BODY_BYTES = 16 * 1024 * 1024

# OpenAI's own routes: adapters there serve only models with their `protocol`; other requests pass untouched.
OPENAI_ROUTES = frozenset({"/chat/completions", "/completions"})

# Replaced in the inner request, or dropped: a compressed response could not be translated.
_REPLACED_HEADERS = frozenset(
    {b"accept-encoding", b"content-encoding", b"content-length", b"content-type", b"transfer-encoding"}
)

Adapter = ProtocolAdapter[Any]
# Loads or unloads a model; False: another node has answered. Raises RequestRefused and ClientGone.
Loads = Callable[[Scope, Receive, Send, LoadRequest], Awaitable[bool]]
T = TypeVar("T")


class ProtocolApp:
    """An ASGI application around `inner`; `routes` are the paths it serves itself.

    `protocol_of` returns the `protocol` of a model (name or alias), None if it has none or is unknown. Of
    several adapters with one route, the first serves models without a `protocol`.
    """

    def __init__(
        self,
        inner: App,
        adapters: Sequence[Adapter],
        *,
        protocol_of: Callable[[str], str | None],
        default_model: str,
        max_body_bytes: int = MAX_BODY_BYTES,
        loads: Loads | None = None,
    ) -> None:
        """`loads`: for adapters that return a `LoadRequest`."""
        self._inner = inner
        self._protocol_of = protocol_of
        self._default_model = default_model
        self._max_body_bytes = max_body_bytes
        self._loads = loads
        self._turn = asyncio.Lock()
        self._by_route: dict[bytes, dict[str, Adapter]] = {}
        for adapter in adapters:
            self._by_route.setdefault(adapter.route.encode(), {})[adapter.name] = adapter

    @property
    def routes(self) -> frozenset[bytes]:
        """The paths that this application handles; all others go to the inner one."""
        return frozenset(self._by_route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = raw_path(scope) if scope["type"] == "http" else b""
        adapters = self._by_route.get(path)
        if adapters is None:
            await self._inner(scope, receive, send)
            return
        try:
            if path.decode() in OPENAI_ROUTES:
                await self._serve_chosen(adapters, scope, receive, send)
            else:
                await self._serve(adapters, scope, receive, send)
        except ClientGone:
            pass

    async def _serve_chosen(
        self, adapters: Mapping[str, Adapter], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve requests for models with one of these protocols; pass on the others unchanged."""
        if scope["method"] != "POST":
            await self._inner(scope, receive, send)
            return
        started = time.perf_counter()
        buffered = await buffer_body(receive, self._max_body_bytes)
        chosen = None
        if buffered.body is not None:
            chosen = adapters.get(self._protocol_of(await self._model_in(buffered.body)) or "")
        if chosen is None:
            await self._inner(scope, buffered.replay, send)
        else:
            await self._translate(chosen, buffered, scope, send, started)

    async def _serve(
        self, adapters: Mapping[str, Adapter], scope: Scope, receive: Receive, send: Send
    ) -> None:
        adapter = next(iter(adapters.values()))
        started = time.perf_counter()
        if scope["method"] != "POST":
            error = ErrorDetail(405, f"{adapter.route} accepts POST, not {scope['method']}", INVALID_REQUEST)
            await _refuse(adapter, error, scope, send, started, (b"allow", b"POST"))
            return
        buffered = await buffer_body(receive, self._max_body_bytes)
        if buffered.body is not None and len(adapters) > 1:
            chosen = self._protocol_of(await self._model_in(buffered.body)) or ""
            adapter = adapters.get(chosen, adapter)
        await self._translate(adapter, buffered, scope, send, started)

    async def _model_in(self, body: bytes) -> str:
        """The model named in a body; the default one if there is none."""
        try:
            model = (await self._in_turn(body, lambda: read_object(body))).get("model")
        except InvalidBody:
            return self._default_model
        return model if isinstance(model, str) else self._default_model

    async def _in_turn(self, body: bytes, call: Callable[[], T]) -> T:
        """Process long bodies one at a time: each step holds the interpreter for up to 0.1 s."""
        if len(body) <= MAX_ON_LOOP_BYTES:
            return call()
        async with self._turn:
            return await off_loop(len(body), call)

    async def _read(self, adapter: Adapter, body: bytes | None) -> TranslatedRequest:
        """Raises RequestInvalid."""
        if body is None:
            raise RequestInvalid(too_long(self._max_body_bytes))
        read = partial(read_request, adapter, body, self._default_model)
        return await self._in_turn(body, read)

    async def _translate(
        self, adapter: Adapter, buffered: BufferedBody, scope: Scope, send: Send, started: float
    ) -> None:
        """Translate the request for the inner application, and its response back."""
        try:
            translated = await self._read(adapter, buffered.body)
        except RequestInvalid as invalid:
            await _refuse(adapter, invalid.error, scope, send, started)
            return
        if translated.load is not None:
            await self._load(adapter, translated.load, buffered, scope, send, started)
            return
        buffered.messages.clear()
        buffered.messages.append({"type": "http.request", "body": translated.body})
        channel = channel_of(scope)
        request_id = request_id_of(scope)
        request, translator = translated.request, translated.translator
        answer = ResponseTranslator(
            adapter, request, translator, send, request_id, warning=translated.warning
        )
        inner_scope = _inner_scope(scope, translated, request_id)
        try:
            await self._inner(inner_scope, buffered.replay, answer.send)
        except* TranslationStopped:
            pass  # raised by `send` after an error was sent; from a task group it arrives as a group
        if not await answer.finish() and channel is not None:
            channel.abort()

    async def _load(
        self,
        adapter: Adapter,
        load: LoadRequest,
        buffered: BufferedBody,
        scope: Scope,
        send: Send,
        started: float,
    ) -> None:
        """Serve a request that asks its model nothing."""
        if self._loads is None:
            raise RuntimeError(f"{adapter.name!r} returns a LoadRequest, and nothing here loads models")
        try:
            is_ours = await self._loads(scope, buffered.replay, send, load)
        except RequestRefused as refused:
            error = read_error(refused.error.status, refused.error.body)
            later = [pair for pair in refused.error.headers if pair[0] == b"retry-after"]
            await _refuse(adapter, error, scope, send, started, *later)
            return
        if is_ours:
            request_id = request_id_of(scope)
            await send_json(send, 200, [], to_json(load.answer()), request_id)
            log_answered(scope, 200, started, request_id, f"{adapter.name}: no request for the engine")


def _inner_scope(scope: Scope, translated: TranslatedRequest, request_id: bytes) -> Scope:
    """The request with its translated path and body; its response must go by `send`, to be translated."""
    headers: RawHeaders = [pair for pair in scope["headers"] if pair[0] not in _REPLACED_HEADERS]
    headers = [pair for pair in headers if pair[0] != b"x-request-id"]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(translated.body)),
        (b"x-request-id", request_id),
    ]
    return {
        **as_translated(scope),
        CLIENT_PATH: raw_path(scope),
        "path": translated.path,
        "raw_path": translated.path.encode(),
        "root_path": "",
        "headers": headers,
        TIMES: translated.request.times,
        **({COLLECTED: True} if translated.translator and translated.translator.is_collected else {}),
    }


async def _refuse(
    adapter: Adapter,
    error: ErrorDetail,
    scope: Scope,
    send: Send,
    started: float,
    *headers: tuple[bytes, bytes],
) -> None:
    """Send an error in the adapter's format; the request goes no further, so it is logged here too."""
    status, body = error_response(adapter, error)
    request_id = request_id_of(scope)
    await send_json(send, status, list(headers), to_json(body), request_id)
    log_answered(scope, status, started, request_id, f"refused by {adapter.name}")
