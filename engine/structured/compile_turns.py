"""Schedules compilations: they take turns, round-robin over tenants. Knows nothing of what is compiled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import EngineError

NO_TENANT = ""  # for requests without a tenant's key: each counts as a tenant of its own


class CompilerBusy(EngineError):
    """Too many compilations; reported like a full queue."""

    code = "queue_full"


@dataclass(eq=False)
class Turn:
    """One running compilation."""

    tenant: str


@dataclass(eq=False)
class _Waiting:
    tenant: str
    turn: asyncio.Future[Turn]


class CompileTurns:
    """Belongs to one event loop."""

    def __init__(self, *, num_turns: int, max_waiting: int) -> None:
        """A tenant has at most half of the turns."""
        self._num_turns = num_turns
        self._max_waiting = max_waiting
        self._running: list[Turn] = []
        self._waiting: list[_Waiting] = []  # the newest last

    async def begin(self, tenant: str) -> Turn:
        """Wait for a turn, which `end` must give back. Raises CompilerBusy if too many wait."""
        waiting = _Waiting(tenant, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._hand_out()
        if len(self._waiting) > self._max_waiting:
            self._refuse_one()
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            self._leave(waiting)
            raise

    def end(self, turn: Turn) -> None:
        self._running.remove(turn)
        self._hand_out()

    def _refuse_one(self) -> None:
        """Refuse the oldest of the tenant with the most: an earlier flood must not lock out new requests."""
        tenant = most_frequent(waiting.tenant for waiting in self._waiting)
        refused = next(waiting for waiting in self._waiting if waiting.tenant == tenant)
        self._waiting.remove(refused)
        if not refused.turn.done():
            refused.turn.set_exception(
                CompilerBusy("The server is busy compiling schemas and grammars: try again later.")
            )

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        elif not waiting.turn.cancelled() and waiting.turn.exception() is None:
            self.end(waiting.turn.result())

    def _hand_out(self) -> None:
        while len(self._running) < self._num_turns and (waiting := self._next()) is not None:
            self._waiting.remove(waiting)
            if not waiting.turn.done():
                turn = Turn(waiting.tenant)
                self._running.append(turn)
                waiting.turn.set_result(turn)

    def _next(self) -> _Waiting | None:
        """The newest of the tenant with the fewest turns: a tenant that floods waits for its own requests."""
        own = Counter(turn.tenant for turn in self._running)
        share = {NO_TENANT: self._num_turns}
        eligible = [
            waiting
            for waiting in self._waiting
            if own[waiting.tenant] < share.get(waiting.tenant, max(1, self._num_turns // 2))
        ]
        return min(reversed(eligible), key=lambda waiting: own[waiting.tenant], default=None)


def most_frequent(tenants: Iterable[str]) -> str:
    """The tenant that occurs most often; the first of equals."""
    return Counter(tenants).most_common(1)[0][0]
