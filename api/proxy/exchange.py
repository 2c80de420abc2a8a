"""Forwards one request and its response between a client's ASGI channel and an engine's connection.

Streams in both directions at once, with back-pressure in both; after 50 ms of waiting it watches for the
client's disconnect. Knows nothing of instances, lease rules or paths: api/proxy/proxy.py does.
"""

from __future__ import annotations

import asyncio
import logging
import time

from api.http.asgi import Message, Receive, Send
from api.http.client_errors import ClientGone, WrongBody
from api.http.dialects import stream_error_event
from api.http.headers import response_headers
from api.http.response_channel import ResponseChannel
from api.http.upstream_errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from api.proxy.pace import Pace
from api.proxy.response_reader import ResponseReader
from api.proxy.target import UpstreamLease
from api.proxy.upstream import ResponseHead, UpstreamConnection
from api.proxy.upstream_pool import UpstreamPool
from api.proxy.upstream_request import UpstreamRequest
from api.telemetry.token_usage import ResponseTail, usage_of
from instance_manager.metrics.proxy import InstanceMetrics

logger = logging.getLogger("berth.proxy")

# How long a request waits for its response head before a task watches for the client's disconnect: short
# requests are answered sooner and need no such task.
FOLLOW_AFTER_S = 0.05


class ResponseCut(Exception):
    """The engine failed in the middle of its response: the client's connection must not end cleanly."""

    def __init__(self, error: UpstreamError | WrongBody) -> None:
        super().__init__(error.message)
        self.error = error


class Exchange:
    """Runs once. However it ends, its connection is pooled or closed and its lease released."""

    __slots__ = (
        "_channel",
        "_follower",
        "_is_uploading",
        "_lease",
        "_metrics",
        "_num_transferred",
        "_pace",
        "_pool",
        "_reader",
        "_receive",
        "_request",
        "_send",
        "_timer",
    )

    def __init__(
        self,
        request: UpstreamRequest,
        pool: UpstreamPool,
        lease: UpstreamLease,
        metrics: InstanceMetrics,
        receive: Receive,
        send: Send,
        channel: ResponseChannel | None,
        pace: Pace,
    ) -> None:
        self._request = request
        self._pool = pool
        self._lease = lease
        self._metrics = metrics
        self._receive = receive
        self._send = send
        self._channel = channel
        self._pace = pace
        self._num_transferred = 0  # bytes from and to the client
        self._reader: ResponseReader | None = None
        self._is_uploading = False
        self._timer: asyncio.TimerHandle | None = None
        self._follower: asyncio.Task[None] | None = None

    async def run(self, sent: ResponseReader | None = None) -> int:
        """Forward; the status. Raises ClientGone; UpstreamError before the head, ResponseCut after it.

        `sent` is the reader of a request that has already been sent whole: then only its response is awaited.
        """
        try:
            self._reader = sent
            data = b""
            if sent is None and self._request.headers.has_body:
                self._is_uploading = True
                self._pace.start(self._progress, self._give_up)
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                self._is_uploading = message.get("more_body", False)
                data = self._framed(message)
            head, reader = await self._open(data, sent)
            self._request.first_byte_s = first_byte_s = time.perf_counter() - self._request.started
            self._metrics.first_byte_s.observe(first_byte_s)
            return await self._answer(head, reader)
        finally:
            self._end()

    def _end(self) -> None:
        """Release everything. Idempotent."""
        self._pace.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._follower is not None:
            self._follower.cancel()
            self._follower = None  # breaks the reference cycle
        if self._reader is not None:
            self._reader.stop(ClientGone())
        self._lease.release()

    # Towards the engine

    async def _open(self, body: bytes, sent: ResponseReader | None) -> tuple[ResponseHead, ResponseReader]:
        """Send the request and wait for the head; retry once if a pooled connection was closed."""
        request, pool = self._request, self._pool
        reader = sent
        if reader is None and (connection := pool.take_idle()) is not None:
            reader = self._send_on(connection, body)
        is_fresh = reader is None
        while True:
            if reader is None:
                reader = self._send_on(await pool.connect(), body)
            self._reader = reader
            self._follow_while_waiting()
            try:
                return await self._head_in_time(reader), reader
            except UpstreamBroken as exc:
                if is_fresh or exc.response_begun or not request.is_repeatable:
                    raise
                is_fresh = True
                reader = None

    def _send_on(self, connection: UpstreamConnection, body: bytes) -> ResponseReader:
        reader = ResponseReader(connection)
        request = self._request
        connection.begin(
            reader,
            request.encode(self._pool.identity_for(request.tenant_line), body),
            is_head_request=request.method == "HEAD",
            request_done=not self._is_uploading,
        )
        return reader

    async def _head_in_time(self, reader: ResponseReader) -> ResponseHead:
        timeout_s = self._pool.options.head_timeout_s
        if timeout_s is None:
            return await reader.read_head()
        error = UpstreamTimeout(f"the engine sent no response within {timeout_s:g} s")
        timer = asyncio.get_running_loop().call_later(timeout_s, reader.stop, error)
        try:
            return await reader.read_head()
        finally:
            timer.cancel()

    def _framed(self, message: Message) -> bytes:
        """A piece of the request's body with its framing; counts it."""
        body: bytes = message.get("body", b"")
        self._metrics.bytes_in += len(body)
        self._num_transferred += len(body)
        return self._request.framed(body, is_last=not message.get("more_body", False))

    # The client's side

    def _follow_while_waiting(self) -> None:
        if self._is_uploading:
            self._follow()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FOLLOW_AFTER_S, self._follow)

    def _follow(self) -> None:
        if self._follower is None:
            self._pace.start(self._progress, self._give_up)
            self._follower = asyncio.get_running_loop().create_task(self._follow_client())

    def _progress(self) -> tuple[bool, int]:
        """Whether the client has to send something, and the bytes transferred so far."""
        is_engine_behind = self._reader is not None and self._reader.connection.write_paused
        return self._is_uploading and not is_engine_behind, self._num_transferred

    def _give_up(self, error: Exception) -> None:
        if self._reader is not None:
            self._reader.stop(error)

    async def _follow_client(self) -> None:
        """Forward the rest of the client's body, then wait for its disconnect."""
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    break
                if self._is_uploading:
                    await self._upload(message)
        except WrongBody as error:
            if self._reader is not None:
                self._reader.stop(error)
            return
        except (
            Exception
        ):  # the root of a task that is not awaited: the engine's request must end all the same
            logger.exception("reading from the client failed")
        if self._reader is not None:
            self._reader.stop(ClientGone())

    async def _upload(self, message: Message) -> None:
        reader = self._reader
        if reader is None:
            return
        if data := self._framed(message):
            reader.connection.write(data)
        if message.get("more_body", False):
            timeout_s = self._pool.options.stall_timeout_s
            try:
                async with asyncio.timeout(timeout_s):
                    await reader.drain()
            except TimeoutError:
                reader.stop(UpstreamTimeout(f"the engine read no more of the request for {timeout_s:g} s"))
        else:
            self._is_uploading = False
            reader.connection.end_request()

    # Towards the client

    async def _answer(self, head: ResponseHead, reader: ResponseReader) -> int:
        status = head.status
        headers, is_event_stream = response_headers(head.headers, status, self._request.headers.request_id)
        if status >= 400:
            self._is_uploading = False  # the rest of the client's body is read and discarded
        send = self._send
        body, is_complete = reader.take_body()
        if is_complete:
            self._request.usage = usage_of(body)
            self._end()
            if self._channel is not None and self._channel.is_ready():
                self._channel.send_whole(status, headers, body)
                self._metrics.bytes_out += len(body)
                return status
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if not is_complete:
            self._follow()
            body = await self._stream(body, reader, is_event_stream, status)
            # Before the last message: servers report a disconnect right after it, and the engine is free.
            self._end()
        self._metrics.bytes_out += len(body)
        await send({"type": "http.response.body", "body": body})
        return status

    async def _stream(self, body: bytes, reader: ResponseReader, is_event_stream: bool, status: int) -> bytes:
        """Forward the body except its last piece, which is returned."""
        send, metrics, channel = self._send, self._metrics, self._channel
        is_complete = False
        last = b""
        tail = ResponseTail(is_event_stream=is_event_stream and self._request.method == "POST")

        def pass_on(piece: bytes) -> bool:
            """Send a piece without waking this task; if it would have to wait, the task sends it."""
            nonlocal last
            if channel is None or not channel.send_piece(piece):
                return False
            metrics.bytes_out += len(piece)
            self._num_transferred += len(piece)
            tail.add(piece)
            last = piece
            return True

        if is_event_stream and status == 200:  # other bodies may be transformed on the way
            reader.pass_on(pass_on)
        try:
            while not is_complete:
                if body:
                    metrics.bytes_out += len(body)
                    self._num_transferred += len(body)
                    tail.add(body)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    last = body
                body, is_complete = await reader.read()
            tail.add(body)
        except (UpstreamError, WrongBody) as exc:
            if is_event_stream:
                whole = not last or last.endswith((b"\n\n", b"\r\n\r\n"))
                event = stream_error_event(exc, self._request.target, self._request.headers.request_id)
                event = event if whole else b"\n\n" + event
                await send({"type": "http.response.body", "body": event, "more_body": True})
            raise ResponseCut(exc) from exc
        finally:
            reader.pass_on(None)
            self._request.usage = tail.usage()
        return body
