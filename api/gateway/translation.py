"""Translates a request for an engine that doesn't speak its API, once its lease has decided the engine.

What an engine speaks is known of its kind, or asked once per process. An engine that speaks the request's API
gets the client's bytes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from api.gateway.request_body import MAX_KEPT, JsonBody, OutgoingBody
from api.http.asgi import Receive, Send
from api.http.errors import ApiError, RequestRefused, error_for
from api.http.off_loop import MAX_ON_LOOP_BYTES, off_loop
from api.http.upstream_errors import UpstreamInvalidResponse
from api.protocols.base import ErrorDetail, ProtocolAdapter, RequestContext
from api.protocols.errors import error_response
from api.protocols.request_translator import RequestInvalid, TranslatedRequest, read_request, too_long
from api.protocols.response_translator import ResponseTranslator, TranslationStopped
from api.proxy.exchange import ResponseCut
from api.proxy.upstream_request import UpstreamRequest
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.lifecycle.dialect_probe import speaks
from instance_manager.types import Endpoint

MAX_BODY_BYTES = 32 * 2**20

Adapter = ProtocolAdapter[Any]


class Dialects:
    """The APIs that can be translated, by path."""

    def __init__(self, adapters: Iterable[Adapter] = ()) -> None:
        self._adapters = {adapter.route: adapter for adapter in adapters}
        self._turn = asyncio.Lock()

    def translates(self, path: str) -> bool:
        return path in self._adapters

    async def steps(
        self, endpoint: Endpoint, path: str, body: bytes, model: str, context: RequestContext
    ) -> list[_Step]:
        """The translations that this engine needs, one after the other; none if it speaks the API of `path`.

        Raises RequestRefused.
        """
        steps: list[_Step] = []
        while (adapter := self._adapters.get(path)) is not None and not await speaks(endpoint, path):
            adapter = adapter.for_request(context)
            translated = await self._translate(adapter, body, model)
            steps.append((adapter, translated))
            path, body = translated.path, translated.body
        if steps and not await speaks(endpoint, path):
            return []  # it has none of these APIs: its own response says so
        return steps

    async def _translate(self, adapter: Adapter, body: bytes, model: str) -> TranslatedRequest:
        """Long bodies one at a time: each step holds the interpreter for up to 0.1 s."""
        if len(body) > MAX_BODY_BYTES:
            raise _refused(adapter, too_long(MAX_BODY_BYTES))
        read = partial(read_request, adapter, body, model)
        try:
            if len(body) <= MAX_ON_LOOP_BYTES:
                return read()
            async with self._turn:
                return await off_loop(len(body), read)
        except RequestInvalid as invalid:
            raise _refused(adapter, invalid.error) from None


_Step = tuple[Adapter, TranslatedRequest]


class EngineTranslation:
    """Of one request, whichever engines it is sent to."""

    def __init__(
        self, dialects: Dialects, path: str, body: bytes, model: str, context: RequestContext
    ) -> None:
        """`path` and `body` as the client sent them. `model`: for a body that names none."""
        self._context = context
        self._dialects = dialects
        self._path = path
        self._body = body
        self._model = model
        self._steps: list[_Step] = []

    async def begin(self, endpoint: Endpoint) -> bool:
        """Whether this engine needs it. Raises RequestRefused."""
        self._steps = await self._dialects.steps(endpoint, self._path, self._body, self._model, self._context)
        if len(self._body) > MAX_KEPT:  # it won't be sent again, so it need not be kept
            self._body = b""
        return bool(self._steps)

    async def prepare(
        self, served_name: str, profile: ModelProfile | None, request: UpstreamRequest, receive: Receive
    ) -> Receive:
        """Replace the request's path, headers and body."""
        translated = self._steps[-1][1]
        request.target = translated.path.encode()
        # A compressed response could not be translated.
        request.headers = request.headers.without(b"accept-encoding").without(b"content-type")
        request.headers = request.headers.with_more([(b"content-type", b"application/json")])
        body = JsonBody(translated.body, None, profile)
        self._steps = [(adapter, replace(each, body=b"")) for adapter, each in self._steps]
        return await OutgoingBody(body, None).begin(served_name, request, receive)

    async def run(self, exchange: Callable[[Send], Awaitable[int]], send: Send, request_id: bytes) -> int:
        """As `Translation` in api/proxy/target.py."""
        answers: list[ResponseTranslator[Any]] = []
        for adapter, translated in self._steps:
            answer = ResponseTranslator(
                adapter,
                translated.request,
                translated.translator,
                send,
                request_id,
                warning=translated.warning,
            )
            answers.append(answer)
            send = answer.send
        failure: Exception = UpstreamInvalidResponse("the engine's response could not be translated")
        try:
            await exchange(send)
        except TranslationStopped:
            pass
        except ResponseCut as cut:
            failure = cut.error
        is_whole = [await answer.finish() for answer in reversed(answers)][-1]
        if not is_whole:
            raise ResponseCut(failure)  # type: ignore[arg-type]
        return answers[0].status or error_for(failure).status


def _refused(adapter: Adapter, error: ErrorDetail) -> RequestRefused:
    status, body = error_response(adapter, error)
    raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
    return RequestRefused(ApiError(status, raw, headers, error.message))
