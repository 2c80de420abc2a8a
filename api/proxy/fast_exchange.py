"""The fast path for short requests: sent and answered from the event loop's callbacks, without a task.

Most requests are small and answered in one piece. For them a task, an ASGI channel and a dozen awaits are
most of the cost. Such a request is sent as soon as it has arrived; if its response arrives whole and in time
it is forwarded at once. In every other case the request becomes a task after all, and api/proxy/exchange.py
continues from its current state.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from api.http.headers import response_headers
from api.http.response_channel import ResponseChannel
from api.proxy.call import Call
from api.proxy.exchange import FOLLOW_AFTER_S
from api.proxy.response_reader import ResponseReader
from api.proxy.upstream import ResponseHead, UpstreamConnection
from api.telemetry.token_usage import usage_of

_UNAVAILABLE = 503


class FastExchange(ResponseReader):
    """The sink of a request without a task. `resume` is called once, unless the response was sent here."""

    __slots__ = ("_call", "_channel", "_resume", "is_settled")

    def __init__(
        self,
        connection: UpstreamConnection,
        call: Call,
        channel: ResponseChannel,
        resume: Callable[[FastExchange], None],
    ) -> None:
        super().__init__(connection)
        self._call = call
        self._channel = channel
        self._resume = resume
        self.is_settled = False

    def received(self, head: ResponseHead | None, body: bytes, is_complete: bool) -> None:
        super().received(head, body, is_complete)
        if not self.is_settled:
            self.settle()

    def failed(self, error: Exception) -> None:
        super().failed(error)
        if not self.is_settled:
            self.settle()

    @property
    def slow_at(self) -> float:
        """When it becomes a task, by time.perf_counter()."""
        return self._call.request.started + FOLLOW_AFTER_S

    def settle(self) -> None:
        """Send the response if it is whole, else become a task."""
        self.is_settled = True
        if (
            self.head is None
            or self.head.status == _UNAVAILABLE  # the engine may be asleep: the task checks
            or not self.is_complete
            or not self._channel.is_ready()
        ):
            self._resume(self)
            return
        call, status = self._call, self.head.status
        headers, _ = response_headers(self.head.headers, status, call.request.headers.request_id)
        body, _ = self.take_body()
        call.request.first_byte_s = first_byte_s = time.perf_counter() - call.request.started
        call.metrics.first_byte_s.observe(first_byte_s)
        call.metrics.bytes_out += len(body)
        call.request.usage = usage_of(body)
        call.finish(status)
        self._channel.send_whole(status, headers, body)


class SlowRequestTimer:
    """Turns slow exchanges into tasks. All have the same time limit, so a single timer serves them."""

    def __init__(self) -> None:
        self._waiting: deque[FastExchange] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, exchange: FastExchange) -> None:
        """Watch an exchange that has just begun."""
        waiting = self._waiting
        while waiting and waiting[0].is_settled:
            waiting.popleft()
        waiting.append(exchange)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FOLLOW_AFTER_S, self._settle_slow)

    def _settle_slow(self) -> None:
        self._timer = None
        while self._waiting:
            exchange = self._waiting[0]
            if not exchange.is_settled:
                left_s = exchange.slow_at - time.perf_counter()
                if left_s > 0:
                    self._timer = asyncio.get_running_loop().call_later(left_s, self._settle_slow)
                    return
                exchange.settle()
            self._waiting.popleft()
