"""Cuts off slow clients that block others: those that do not read their response or trickle their body.

A slow client is left alone until another request waits for its capacity; then it must keep a minimum pace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from api.http.client_errors import ClientGone
from api.proxy.target import UpstreamLease

logger = logging.getLogger("berth.proxy")


@dataclass(frozen=True, slots=True)
class PaceRules:
    """The minimum pace of a client while other requests wait for its capacity. `stall_s`: 0 = no limit."""

    stall_s: float = 30.0
    bytes_per_s: int = 1024  # minimum average over that time, while the client is the one waited for


class ClientStalled(ClientGone):
    """The client was cut off: other requests waited for its capacity."""


class ClientSide(Protocol):
    """The client's connection."""

    def num_unsent(self) -> int:
        """Bytes of the response that the client has not received yet; 0 if it keeps up."""

    def cut(self) -> None:
        """Close it at once, discarding unsent data."""


class Pace:
    """The pace of one exchange. Call `start` once it takes longer than most, `stop` at its end."""

    def __init__(self, rules: PaceRules, lease: UpstreamLease, client: ClientSide | None) -> None:
        """`client`: None = its progress is unknown, so it is never cut off."""
        self._rules = rules
        self._lease = lease
        self._client = client
        self._timer: asyncio.TimerHandle | None = None
        self._was_behind = False
        self._transferred = 0

    def start(self, progress: Callable[[], tuple[bool, int]], give_up: Callable[[Exception], None]) -> None:
        """`progress`: whether the client has to send something, and the bytes transferred so far."""
        if self._timer is None and self._client is not None and self._rules.stall_s:
            self._check_later(progress, give_up)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._client = None

    def _check_later(
        self, progress: Callable[[], tuple[bool, int]], give_up: Callable[[Exception], None]
    ) -> None:
        # It takes two slow checks in a row, so a client is cut off within the limit of the rules.
        delay_s = self._rules.stall_s / 2
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._check, progress, give_up)

    def _check(self, progress: Callable[[], tuple[bool, int]], give_up: Callable[[Exception], None]) -> None:
        client, rules = self._client, self._rules
        if client is None:
            return
        is_to_send, transferred = progress()
        num_unsent = client.num_unsent()
        is_behind, transferred = is_to_send or num_unsent > 0, transferred - num_unsent
        is_slow = transferred - self._transferred < rules.bytes_per_s * rules.stall_s / 2
        if is_behind and self._was_behind and is_slow and self._lease.is_wanted:
            logger.warning(
                "instance %s: cut off a client that read or sent less than %d bytes a second for %g s "
                "while other requests waited",
                self._lease.instance_id,
                rules.bytes_per_s,
                rules.stall_s / 2,
            )
            self._timer = None
            client.cut()
            give_up(ClientStalled())
            return
        self._was_behind, self._transferred = is_behind, transferred
        self._check_later(progress, give_up)
