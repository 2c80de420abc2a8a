"""Calls from an event loop into the engine's thread, between steps. Knows nothing of the thread's work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.errors import EngineError

log = logging.getLogger(__name__)

CoreT = TypeVar("CoreT")


@dataclass(frozen=True, slots=True)
class ThreadCall(Generic[CoreT]):
    """A function to call in the engine's thread."""

    function: Callable[[CoreT], None]
    done: asyncio.Future[None]

    def run(self, core: CoreT) -> None:
        """Call the function and report the outcome to the loop."""
        failure: Exception | None = None
        try:
            self.function(core)
        except Exception as error:  # any error belongs to the caller
            log.exception("A call into the engine's thread failed.")
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nothing waits for the outcome
            self.done.get_loop().call_soon_threadsafe(_settle, self.done, failure)


class ThreadCalls(Generic[CoreT]):
    """The calls that are not finished yet; belongs to the loop."""

    def __init__(self, put: Callable[[ThreadCall[CoreT]], object]) -> None:
        """`put` hands a call to the thread, which runs it."""
        self._put = put
        self._open: set[asyncio.Future[None]] = set()

    async def run(self, function: Callable[[CoreT], None]) -> None:
        """Have the thread call a function; raises what that raises. Cancelling does not undo the call."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.add(done)
        done.add_done_callback(self._open.discard)
        self._put(ThreadCall(function, done))
        await done

    def end(self, failure: EngineError) -> None:
        """Fail the open calls: the thread has ended."""
        for done in tuple(self._open):
            _settle(done, failure)


def _settle(done: asyncio.Future[None], failure: Exception | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
