"""Work that is done before there is an answer, and ends when the client that it is for has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.types import Receive

from engine.errors import InvalidRequest

Result = TypeVar("Result")

# Set at the gate for all that is done on behalf of one HTTP request.
_receive: ContextVar[Receive | None] = ContextVar("receive", default=None)


def set_client(receive: Receive) -> None:
    """Say whom this task works for."""
    _receive.set(receive)


async def raise_on_disconnect(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """What `work` returns. The request's body must have been read. Raises InvalidRequest, to nobody."""
    receive = _receive.get()
    if receive is None:
        return await work()

    async def boxed() -> tuple[Result]:
        return (await work(),)

    made = await cancel_on_disconnect(receive, boxed)
    if made is None:
        raise InvalidRequest("The client has left.")
    return made[0]


async def cancel_on_disconnect(
    receive: Receive, work: Callable[[], Coroutine[Any, Any, Result]]
) -> Result | None:
    """The result of `work`, or None if the client left first and `work` was cancelled.

    Two tasks: whichever ends first ends the other, and both have ended when this returns.
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
