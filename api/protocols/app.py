"""Serves protocols: an ASGI application that translates their requests for an inner one with OpenAI's API.

Other requests are passed on untouched, so that forwarding costs nothing. Of models it knows only their
`protocol`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from api.http.asgi import App, RawHeaders, Receive, Scope, Send
from api.http.buffered_body import BufferedBody, buffer_body
from api.http.client_errors import ClientGone
from api.http.dispatch import raw_path
from api.http.json_structure import TooManyParts, check_parts
from api.http.named_model import (
    InvalidBody,
    UnclearModel,
    has_one_model,
    model_in_object,
    read_object,
)
from api.http.off_loop import MAX_ON_LOOP_BYTES, off_loop
from api.http.respond import request_id_of
from api.http.response_channel import channel_of, without_channel
from api.protocols.base import (
    INVALID_REQUEST,
    ErrorDetail,
    InvalidProtocolRequest,
    ProtocolAdapter,
    ProtocolRequest,
    StreamTranslator,
    to_json,
)
from api.protocols.errors import AdapterFailed, ask_adapter, error_response, failure_of
from api.protocols.response_translator import ResponseTranslator, TranslationStopped, send_json
from api.telemetry.access_log import log_answered

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_COMMAS = 250_000  # between a body's values, which are parsed, validated, copied and encoded

# OpenAI's own routes: adapters there serve only models with their `protocol`; other requests pass untouched.
OPENAI_ROUTES = frozenset({"/chat/completions", "/completions"})

# Replaced in the inner request, or dropped: a compressed response could not be translated.
_REPLACED_HEADERS = frozenset(
    {b"accept-encoding", b"content-encoding", b"content-length", b"content-type", b"transfer-encoding"}
)

Adapter = ProtocolAdapter[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Translated:
    """A request in both formats."""

    request: ProtocolRequest
    path: str
    body: bytes
    translator: StreamTranslator | None  # None = not streamed


class _RequestInvalid(Exception):
    """The request can't be served as it is."""

    def __init__(self, error: ErrorDetail) -> None:
        super().__init__(error.message)
        self.error = error


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
    ) -> None:
        self._inner = inner
        self._protocol_of = protocol_of
        self._default_model = default_model
        self._max_body_bytes = max_body_bytes
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

    async def _translate(
        self, adapter: Adapter, buffered: BufferedBody, scope: Scope, send: Send, started: float
    ) -> None:
        """Translate the request for the inner application, and its response back."""
        try:
            translated = await self._read(adapter, buffered.body)
        except _RequestInvalid as invalid:
            await _refuse(adapter, invalid.error, scope, send, started)
            return
        buffered.messages.clear()
        buffered.messages.append({"type": "http.request", "body": translated.body})
        channel = channel_of(scope)
        request_id = request_id_of(scope)
        answer = ResponseTranslator(adapter, translated.request, translated.translator, send, request_id)
        inner_scope = _inner_scope(scope, translated, request_id)
        try:
            await self._inner(inner_scope, buffered.replay, answer.send)
        except* TranslationStopped:
            pass  # raised by `send` after an error was sent; from a task group it arrives as a group
        if not await answer.finish() and channel is not None:
            channel.abort()

    async def _read(self, adapter: Adapter, body: bytes | None) -> _Translated:
        """Raises _RequestInvalid."""
        if body is None:
            message = (
                f"the body exceeds {self._max_body_bytes} bytes, the limit of this route; send a smaller one"
            )
            raise _RequestInvalid(ErrorDetail(413, message, INVALID_REQUEST, code="body_too_large"))
        try:
            return await self._in_turn(body, lambda: self._read_body(adapter, body))
        except ValidationError as exc:
            raise _RequestInvalid(_validation_error(exc)) from None
        except InvalidProtocolRequest as exc:
            raise _RequestInvalid(
                ErrorDetail(422, exc.message, INVALID_REQUEST, exc.param, exc.code or "invalid_request")
            ) from None
        except AdapterFailed:
            raise _RequestInvalid(failure_of(adapter)) from None

    def _read_body(self, adapter: Adapter, body: bytes) -> _Translated:
        try:
            check_parts(body, MAX_COMMAS)
        except TooManyParts as exc:
            raise InvalidProtocolRequest(str(exc)) from None
        request = adapter.request_schema.model_validate_json(body)
        if not has_one_model(body):
            _check_model(body)

        def translate() -> _Translated:
            asked = adapter.to_openai(request)
            fields = {**asked.body, "model": asked.body.get("model") or self._default_model}
            translator = adapter.from_openai_stream(request) if request.stream else None
            return _Translated(request, asked.path, to_json(fields), translator)

        return ask_adapter(adapter, translate)


def _check_model(body: bytes) -> None:
    """Raises InvalidProtocolRequest if the body names its model ambiguously."""
    try:
        model_in_object(body, read_object(body))
    except (UnclearModel, InvalidBody) as exc:
        raise InvalidProtocolRequest(f"model {exc}", param="model") from None


def _inner_scope(scope: Scope, translated: _Translated, request_id: bytes) -> Scope:
    """The request with its translated path and body; its response must go by `send`, to be translated."""
    headers: RawHeaders = [pair for pair in scope["headers"] if pair[0] not in _REPLACED_HEADERS]
    headers = [pair for pair in headers if pair[0] != b"x-request-id"]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(translated.body)),
        (b"x-request-id", request_id),
    ]
    return {
        **without_channel(scope),
        "path": translated.path,
        "raw_path": translated.path.encode(),
        "root_path": "",
        "headers": headers,
    }


def _validation_error(exc: ValidationError) -> ErrorDetail:
    """400 for a body that isn't JSON, 422 for an invalid field; reports the first error."""
    first = exc.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ErrorDetail(
            400, f"the body is not valid JSON: {first['msg']}", INVALID_REQUEST, code="invalid_json"
        )
    param = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part)) or None
    message = f"{param or 'the body'}: {first['msg']}{_shown(first['input'])}"
    return ErrorDetail(422, message, INVALID_REQUEST, param, first["type"])


def _is_union_tag(part: int | str) -> bool:
    """Whether a part of an error's location is not a field, but a member of a union type."""
    return part in ("str", "int", "float", "bool") or (isinstance(part, str) and "[" in part)


def _shown(value: object) -> str:
    """The invalid value, if it is short enough to help."""
    if value is None or isinstance(value, dict | list):
        return ""
    text = repr(value)
    return f" (got {text})" if len(text) <= 100 else ""


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
