"""Runs work on behalf of a client and cancels it when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import EngineError, InvalidRequest
from engine.server.http.errors import error_response

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


class CancellableResponse:
    """An ASGI response: the result of `work`, which is cancelled if the client disconnects."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Response]]) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def run() -> Response:
            try:
                return await self._work()
            except EngineError as error:
                return error_response(error, scope["path"])

        response = await cancel_on_disconnect(receive, run)
        if response is not None:
            await response(scope, receive, send)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
