"""The short way for short requests: sent and answered from the event loop's callbacks, without a task.

Most requests are small and answered in one piece. For them a task, an ASGI channel and a dozen awaits are
most of the cost. Such a request is sent as soon as it has arrived; if its response then comes whole and in
time it is passed on at once, and in every other case the request becomes a task after all, in the state it
is in, and api/exchange.py goes on with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from api.call import Call
from api.exchange import FOLLOW_AFTER_S
from api.headers import response_headers
from api.response_channel import ResponseChannel
from api.response_reader import ResponseReader
from api.upstream import ResponseHead, UpstreamConnection


class DirectExchange(ResponseReader):
    """The sink of a request that has no task yet. `go_on` is called once, unless the answer went out here."""

    __slots__ = ("_call", "_channel", "_go_on", "_is_settled", "_timer")

    def __init__(
        self,
        connection: UpstreamConnection,
        call: Call,
        channel: ResponseChannel,
        go_on: Callable[[DirectExchange], None],
    ) -> None:
        super().__init__(connection)
        self._call = call
        self._channel = channel
        self._go_on = go_on
        self._is_settled = False
        self._timer = asyncio.get_running_loop().call_later(FOLLOW_AFTER_S, self._settle)

    def received(self, head: ResponseHead | None, body: bytes, is_complete: bool) -> None:
        super().received(head, body, is_complete)
        if not self._is_settled:
            self._settle()

    def failed(self, error: Exception) -> None:
        super().failed(error)
        if not self._is_settled:
            self._settle()

    def _settle(self) -> None:
        self._is_settled = True
        self._timer.cancel()
        if self.head is None or not self.is_complete or not self._channel.is_ready():
            self._go_on(self)
            return
        call, status = self._call, self.head.status
        headers, _ = response_headers(self.head.headers, status, call.request.headers.request_id)
        body, _ = self.take()
        call.request.first_byte_s = first_byte_s = time.perf_counter() - call.request.started
        call.metrics.first_byte_s.observe(first_byte_s)
        call.metrics.bytes_out += len(body)
        call.finish(status)
        self._channel.send_whole(status, headers, body)
