"""Who compiles when: few at a time, round the tenants, and who takes long makes room for those that wait.

Knows nothing of what is compiled, and of processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.errors import EngineError

NOBODY = ""  # the tenant of requests that nobody's key marks: each of them stands for itself


class CompilerBusy(EngineError):
    """Too many compilations wait, or others wait for one that takes long; told as a full queue is."""

    code = "queue_full"


@dataclass(eq=False)
class Turn:
    """One compilation that runs. `is_over` is set when it has to end for others that wait."""

    tenant: str
    begun: float
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class CompileTurns:
    """Belongs to one event loop."""

    def __init__(
        self,
        *,
        num_turns: int,
        max_waiting: int,
        fair_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fair_s`: how long one may go on while others wait. A tenant has half of the turns at most."""
        self._num_turns = num_turns
        self._max_waiting = max_waiting
        self._fair_s = fair_s
        self._clock = clock
        self._running: list[Turn] = []  # the one that began first is the first
        self._waiting: OrderedDict[str, deque[asyncio.Future[Turn]]] = (
            OrderedDict()
        )  # whose turn is next first
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self, tenant: str) -> Turn:
        """Waits for a turn, which is to be given back by `end`. Raises CompilerBusy if too many wait."""
        waiting = sum(map(len, self._waiting.values()))
        of_tenant = len(self._waiting.get(tenant, ())) if tenant != NOBODY else 0
        if waiting >= self._max_waiting or of_tenant >= self._max_waiting // 2:
            raise CompilerBusy("The server is busy compiling schemas and grammars: try again later.")
        future: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(future)
        self._hand_out()
        try:
            return await future
        except asyncio.CancelledError:
            self._leave(tenant, future)
            raise

    def end(self, turn: Turn) -> None:
        self._running.remove(turn)
        self._hand_out()

    def _leave(self, tenant: str, future: asyncio.Future[Turn]) -> None:
        if future.done() and not future.cancelled():
            self.end(future.result())
        elif future in (queue := self._waiting.get(tenant, deque())):
            queue.remove(future)
            if not queue:
                del self._waiting[tenant]

    def _hand_out(self) -> None:
        while (tenant := self._next_tenant()) is not None:
            future = self._waiting[tenant].popleft()
            self._waiting.move_to_end(tenant)
            if not self._waiting[tenant]:
                del self._waiting[tenant]
            if not future.done():
                turn = Turn(tenant, self._clock())
                self._running.append(turn)
                future.set_result(turn)
        self._press()

    def _next_tenant(self) -> str | None:
        if len(self._running) >= self._num_turns:
            return None
        return next((tenant for tenant in self._waiting if not self._has_its_share(tenant)), None)

    def _has_its_share(self, tenant: str) -> bool:
        own = sum(turn.tenant == tenant for turn in self._running)
        return tenant != NOBODY and own >= max(1, self._num_turns // 2)

    def _press(self) -> None:
        """End the one that has run longest, of whoever has most turns, once it has had its time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        going_on = [turn for turn in self._running if not turn.is_over.is_set()]
        if len(going_on) < len(self._running) or not going_on:
            return  # one makes room already
        counts = Counter(turn.tenant for turn in going_on)
        longest = max(going_on, key=lambda turn: (counts[turn.tenant], -turn.begun))
        left = longest.begun + self._fair_s - self._clock()
        if left <= 0:
            longest.is_over.set()
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._press)
