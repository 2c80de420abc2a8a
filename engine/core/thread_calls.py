"""What an event loop asks of the engine's thread between two steps. Knows nothing of what the thread does."""

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
class Call(Generic[CoreT]):
    """Something to do in the engine's thread."""

    function: Callable[[CoreT], None]
    done: asyncio.Future[None]

    def run(self, core: CoreT) -> None:
        """Do it, and tell the loop how that went."""
        failure: Exception | None = None
        try:
            self.function(core)
        except Exception as error:  # whatever it is, it belongs to the caller
            log.exception("What was asked of the engine between steps failed.")
            failure = error
        with suppress(RuntimeError):  # the loop is closed: there is nobody to tell
            self.done.get_loop().call_soon_threadsafe(_settle, self.done, failure)


class Calls(Generic[CoreT]):
    """Those that have not been answered yet; belongs to the loop."""

    def __init__(self, put: Callable[[Call[CoreT]], object]) -> None:
        """`put` hands a call to the thread, which runs it."""
        self._put = put
        self._open: set[asyncio.Future[None]] = set()

    async def run(self, function: Callable[[CoreT], None]) -> None:
        """Have the thread do something; raises what that raises. To cancel doesn't undo it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.add(done)
        done.add_done_callback(self._open.discard)
        self._put(Call(function, done))
        await done

    def end(self, failure: EngineError) -> None:
        """The thread answers no more."""
        for done in tuple(self._open):
            _settle(done, failure)


def _settle(done: asyncio.Future[None], failure: Exception | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
