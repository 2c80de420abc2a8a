"""Several pieces of work on one loop, which end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def all_or_none(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order. If one fails or this is cancelled, all have ended before the error goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
