"""Runs work on behalf of a client and cancels it when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.types import Receive

from engine.errors import InvalidRequest

Result = TypeVar("Result")

# Set by the middleware, for everything done on behalf of one HTTP request.
_receive: ContextVar[Receive | None] = ContextVar("receive", default=None)


def set_client(receive: Receive) -> None:
    """Set the client that the current task works for."""
    _receive.set(receive)


async def raise_on_disconnect(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """The result of `work`. The body must have been read. Raises InvalidRequest if the client has left."""
    receive = _receive.get()
    if receive is None:
        return await work()

    async def boxed() -> tuple[Result]:
        return (await work(),)

    result = await cancel_on_disconnect(receive, boxed)
    if result is None:
        raise InvalidRequest("The client has disconnected.")
    return result[0]


async def cancel_on_disconnect(
    receive: Receive, work: Callable[[], Coroutine[Any, Any, Result]]
) -> Result | None:
    """The result of `work`, or None if the client left first and `work` was cancelled.

    Runs two tasks: the first to end cancels the other, and both have ended when this returns.
    """
    working = asyncio.create_task(work())
    leaving = asyncio.create_task(_until_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
