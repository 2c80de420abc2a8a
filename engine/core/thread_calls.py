"""Calls from an event loop into the engine's thread, between steps. Knows nothing of the thread's work."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ThreadCall:
    """A method to call in the engine's thread. Plain data, as its outcome is."""

    number: int
    method: str
    arguments: tuple[Any, ...] = ()

    def run(self, target: object) -> CallOutcome:
        try:
            getattr(target, self.method)(*self.arguments)
        except Exception as error:  # any error belongs to the caller
            log.exception("A call into the engine's thread failed.")
            return CallOutcome(self.number, error)
        return CallOutcome(self.number)


@dataclass(frozen=True, slots=True)
class CallOutcome:
    number: int
    failure: Exception | None = None


class ThreadCalls:
    """The calls that are not finished yet; belongs to the loop."""

    def __init__(self, put: Callable[[ThreadCall], object]) -> None:
        """`put` hands a call to the thread, which runs it; the outcome must come back to `settle`."""
        self._put = put
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[None]] = {}

    async def run(self, method: str, *arguments: Any) -> None:
        """Have the thread call a method; raises what that raises. Cancelling does not undo the call."""
        number = next(self._numbers)
        done = self._open[number] = asyncio.get_running_loop().create_future()
        self._put(ThreadCall(number, method, arguments))
        try:
            await done
        finally:
            self._open.pop(number, None)

    def settle(self, outcome: CallOutcome) -> None:
        done = self._open.get(outcome.number)
        if done is None or done.done():
            return
        if outcome.failure is None:
            done.set_result(None)
        else:
            done.set_exception(outcome.failure)

    def end(self, failure: EngineError) -> None:
        """Fail the open calls: the thread has ended."""
        for number in tuple(self._open):
            self.settle(CallOutcome(number, failure))
