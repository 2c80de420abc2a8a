"""A client that keeps others waiting: it reads nothing of its answer, or sends its body a byte at a time.

While nobody waits for its place it may take all the time there is. While somebody does, it has to go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from api.http.leases import ClientGone, Lease

logger = logging.getLogger("berth.proxy")


@dataclass(frozen=True, slots=True)
class PaceRules:
    """What is asked of a client for whose place others wait. `stall_s`: 0 = nothing."""

    stall_s: float = 30.0
    bytes_per_s: int = 1024  # at least, on average over that time, while it is the client that is waited for


class ClientStalled(ClientGone):
    """The client was cut off: others waited for its place."""


class ClientSide(Protocol):
    """The client's connection."""

    def num_unsent(self) -> int:
        """Bytes of the answer that the client has not taken yet; 0 where it keeps up."""

    def cut(self) -> None:
        """Close it at once, whatever is unsent."""


class Pace:
    """Of one exchange. `start` it once it takes longer than most, `stop` it in the end."""

    def __init__(self, rules: PaceRules, lease: Lease, client: ClientSide | None) -> None:
        """`client`: None = nothing can be told of it, and it is left alone."""
        self._rules = rules
        self._lease = lease
        self._client = client
        self._timer: asyncio.TimerHandle | None = None
        self._was_behind = False
        self._moved = 0

    def start(self, progress: Callable[[], tuple[bool, int]], give_up: Callable[[Exception], None]) -> None:
        """`progress`: whether the client is to send something, and the bytes that went to and fro."""
        if self._timer is None and self._client is not None and self._rules.stall_s:
            self._look_later(progress, give_up)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._client = None

    def _look_later(
        self, progress: Callable[[], tuple[bool, int]], give_up: Callable[[Exception], None]
    ) -> None:
        # Two looks in a row tell, so a client is cut within the time that the rules give it.
        delay_s = self._rules.stall_s / 2
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look, progress, give_up)

    def _look(self, progress: Callable[[], tuple[bool, int]], give_up: Callable[[Exception], None]) -> None:
        client, rules = self._client, self._rules
        if client is None:
            return
        is_to_send, moved = progress()
        num_unsent = client.num_unsent()
        is_behind, moved = is_to_send or num_unsent > 0, moved - num_unsent
        is_slow = moved - self._moved < rules.bytes_per_s * rules.stall_s / 2
        if is_behind and self._was_behind and is_slow and self._lease.is_wanted:
            logger.warning(
                "instance %s: a client was cut off that read or sent less than %d bytes a second for %g s "
                "while others waited for its place",
                self._lease.instance_id,
                rules.bytes_per_s,
                rules.stall_s / 2,
            )
            self._timer = None
            client.cut()
            give_up(ClientStalled())
            return
        self._was_behind, self._moved = is_behind, moved
        self._look_later(progress, give_up)
