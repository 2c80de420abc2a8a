"""Who compiles when: quick ones take turns, round the tenants, and slow ones step aside for them.

Most schemas compile in milliseconds; some take seconds, and one can't tell which before. So each has a turn,
and gives it on once it is found to be slow. Slow ones go on beside, with what the processors have left, and
where they are too many one of them ends. Knows nothing of what is compiled, and of processes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.errors import EngineError

NOBODY = ""  # the tenant of requests that nobody's key marks: each of them stands for itself


class CompilerBusy(EngineError):
    """Too many compile; told as a full queue is."""

    code = "queue_full"


@dataclass(eq=False)
class Turn:
    """One compilation that runs. `is_over` is set when it has to end for others."""

    tenant: str
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Waiting:
    tenant: str
    turn: asyncio.Future[Turn]


class CompileTurns:
    """Belongs to one event loop."""

    def __init__(self, *, num_turns: int, max_slow: int, max_waiting: int) -> None:
        """Of the turns, a tenant has half at most."""
        self._num_turns = num_turns
        self._max_slow = max_slow
        self._max_waiting = max_waiting
        self._running: list[Turn] = []
        self._slow: list[Turn] = []  # the first has run longest
        self._waiting: list[_Waiting] = []  # the newest last

    async def begin(self, tenant: str) -> Turn:
        """Waits for a turn, which is to be given back by `end`. Raises CompilerBusy if too many wait."""
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

    def become_slow(self, turn: Turn) -> None:
        """Its turn is given to others; it goes on, unless there are too many like it."""
        if turn not in self._running:
            return
        self._running.remove(turn)
        self._slow.append(turn)
        going_on = [one for one in self._slow if not one.is_over.is_set()]
        if len(going_on) > self._max_slow:
            tenant = greediest(one.tenant for one in going_on)
            next(one for one in going_on if one.tenant == tenant).is_over.set()
        self._hand_out()

    def end(self, turn: Turn) -> None:
        (self._running if turn in self._running else self._slow).remove(turn)
        self._hand_out()

    def _refuse_one(self) -> None:
        """The oldest of whoever has most: a flood that came before doesn't shut out who comes now."""
        tenant = greediest(one.tenant for one in self._waiting)
        refused = next(one for one in self._waiting if one.tenant == tenant)
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
        """Of the tenant that has fewest turns, and of those the newest: whoever floods waits for its own."""
        own = Counter(turn.tenant for turn in self._running)
        share = {NOBODY: self._num_turns}
        able = [
            one
            for one in self._waiting
            if own[one.tenant] < share.get(one.tenant, max(1, self._num_turns // 2))
        ]
        return min(reversed(able), key=lambda one: own[one.tenant], default=None)


def greediest(tenants: Iterable[str]) -> str:
    """Who is named most often; of equals, who is named first."""
    return Counter(tenants).most_common(1)[0][0]
