"""Caches responses that would be the same again: those of requests at temperature 0, or with a seed.

Wraps the gateway as a raw ASGI application. Other requests pass through untouched, and so do those of keys
with a list of models. A response is cached for the key that got it, or for all keys if they share caches:
then `X-Berth-Cache` reveals to a client that another one has sent the same request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date

from api.access.keys import caller_of, is_limited_to_models
from api.gateway.cacheable import CacheableRequest, is_good_answer, read_cacheable
from api.gateway.sse_keep_alive import SIGN
from api.http.asgi import App, Message, Receive, Scope, Send
from api.http.buffered_body import buffer_body
from api.http.client_errors import ClientGone
from api.http.dispatch import raw_path
from api.http.headers import find_header
from api.http.off_loop import off_loop
from api.http.respond import request_id_of, send_response
from api.http.response_channel import channel_of, without_channel
from api.telemetry.access_log import log_answered

PATHS = frozenset({b"/v1/chat/completions", b"/v1/completions", b"/chat/completions", b"/completions"})

MAX_BODY_BYTES = 1024 * 1024  # longer requests pass through untouched
MAX_ENTRY_BYTES = 4 * 1024 * 1024
_ENTRY_OVERHEAD_BYTES = 512  # key, objects, and their slots in the table


@dataclass(frozen=True, slots=True)
class _Entry:
    body: bytes
    content_type: bytes

    @property
    def size(self) -> int:
        return len(self.body) + len(self.content_type) + _ENTRY_OVERHEAD_BYTES


class ResponseCache:
    """An ASGI application around `inner` that caches at most `max_bytes` of responses (LRU).

    `identity` returns for a model (name or alias) what its responses depend on beside the request: how it is
    loaded. None = do not cache its responses.
    """

    def __init__(self, inner: App, max_bytes: int, identity: Callable[[str], str | None]) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._max_entry_bytes = min(MAX_ENTRY_BYTES, max_bytes // 4)
        self._identity = identity
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.num_bytes = 0  # of entries and of responses being recorded
        self.num_hits = 0
        self.num_misses = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _may_be_cacheable(scope):
            await self._inner(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            buffered = await buffer_body(receive, MAX_BODY_BYTES)
        except ClientGone:
            return
        body = buffered.body
        cacheable = await off_loop(len(body), lambda: read_cacheable(body)) if body is not None else None
        identity = self._identity(cacheable.model) if cacheable is not None else None
        if cacheable is None or identity is None:
            await self._inner(scope, buffered.replay, send)
            return
        owner = caller_of(scope).cache_owner
        key = cacheable.key(raw_path(scope), scope["query_string"], identity, owner, date.today())
        entry = None if _asks_for_fresh(scope) else self._find(key)
        if entry is None:
            self.num_misses += 1
            await self._answer(cacheable, key, identity, scope, buffered.replay, send)
        else:
            self.num_hits += 1
            request_id = request_id_of(scope)
            await _replay(entry, request_id, send)
            log_answered(scope, 200, started, request_id, "cache hit")

    def _find(self, key: bytes) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def _drop(self, key: bytes) -> None:
        self.num_bytes -= self._entries.pop(key).size

    def reserve(self, num_bytes: int) -> bool:
        """Reserve memory for more of a response, evicting the least recently used entries."""
        while self._entries and self.num_bytes + num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        if self.num_bytes + num_bytes > self._max_bytes:
            return False
        self.num_bytes += num_bytes
        return True

    def release(self, num_bytes: int) -> None:
        """Release reserved memory."""
        self.num_bytes -= num_bytes

    async def _answer(
        self,
        cacheable: CacheableRequest,
        key: bytes,
        identity: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Forward the request, and cache the response if it is complete and good."""

        async def keep(entry: _Entry) -> None:
            is_good = await off_loop(entry.size, lambda: is_good_answer(entry.content_type, entry.body))
            # If the model has been reloaded differently meanwhile, this may be a response of either.
            if is_good and self._identity(cacheable.model) == identity:
                self._store(key, entry)

        channel = channel_of(scope)
        recording = _Recording(self, send, keep, self._max_entry_bytes)
        try:
            await self._inner(without_channel(scope), receive, recording.send)
        finally:
            recording.give_up()
        if recording.is_cut and channel is not None:
            channel.abort()

    def _store(self, key: bytes, entry: _Entry) -> None:
        if key in self._entries:
            self._drop(key)
        if self.reserve(entry.size):
            self._entries[key] = entry


class _Recording:
    """Forwards one response to the client and records its body for the cache."""

    def __init__(
        self, cache: ResponseCache, send: Send, keep: Callable[[_Entry], Awaitable[None]], max_bytes: int
    ) -> None:
        self._cache = cache
        self._send = send
        self._keep = keep
        self._max_bytes = max_bytes
        self._body: bytearray | None = None  # None = it will not be cached
        self._content_type = b""
        self.is_cut = False  # it has begun but not ended

    async def send(self, message: Message) -> None:
        """ASGI's `send` for the inner application."""
        if message["type"] == "http.response.start":
            headers = message["headers"]
            if message["status"] == 200 and find_header(headers, b"content-encoding") in (b"", b"identity"):
                self._body = bytearray()
                self._content_type = find_header(headers, b"content-type")
            message = {**message, "headers": [*headers, (b"x-berth-cache", b"miss")]}
            self.is_cut = True
        elif message["type"] == "http.response.body":
            if SIGN not in message:
                self._collect(message.get("body", b""))
            if not message.get("more_body", False):
                self.is_cut = False
                await self._keep_whole()
        await self._send(message)

    def _collect(self, piece: bytes) -> None:
        body = self._body
        if body is None:
            return
        if len(body) + len(piece) > self._max_bytes or not self._cache.reserve(len(piece)):
            self.give_up()
        else:
            body += piece

    async def _keep_whole(self) -> None:
        """Store it before sending the last piece: a client with the whole response then finds it cached."""
        if self._body is not None:
            entry = _Entry(bytes(self._body), self._content_type)
            self.give_up()
            await self._keep(entry)

    def give_up(self) -> None:
        """Drop the recorded body."""
        if self._body is not None:
            self._cache.release(len(self._body))
            self._body = None


def _may_be_cacheable(scope: Scope) -> bool:
    """Whether the body may be a cacheable request."""
    if scope["type"] != "http" or scope["method"] != "POST" or raw_path(scope) not in PATHS:
        return False
    if is_limited_to_models(scope):
        return False  # the gateway checks the key's models
    length = find_header(scope["headers"], b"content-length")
    is_long = length.isdigit() and int(length) > MAX_BODY_BYTES
    return not is_long and "no-store" not in _cache_control(scope)


def _asks_for_fresh(scope: Scope) -> bool:
    """Whether the client requests a new response, which then replaces the cached one."""
    return not _cache_control(scope).isdisjoint({"no-cache", "max-age=0"})


def _cache_control(scope: Scope) -> frozenset[str]:
    values = (value.decode("latin-1") for name, value in scope["headers"] if name == b"cache-control")
    return frozenset(part.strip().lower() for value in values for part in value.split(","))


async def _replay(entry: _Entry, request_id: bytes, send: Send) -> None:
    headers = [
        (b"content-type", entry.content_type),
        (b"content-length", b"%d" % len(entry.body)),
        (b"x-request-id", request_id),
        (b"x-berth-cache", b"hit"),
    ]
    if entry.content_type.lower().startswith(b"text/event-stream"):
        headers.append((b"x-accel-buffering", b"no"))
    await send_response(send, 200, headers, entry.body)
