"""Work on bytes that may be few or many: at once, or in a thread while the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

MAX_ON_LOOP_BYTES = 256 * 1024  # JSON of this size takes a millisecond or two

T = TypeVar("T")


async def off_loop(num_bytes: int, call: Callable[[], T]) -> T:
    """Call it; in a thread where there are so many bytes that the event loop would stand still."""
    return await asyncio.to_thread(call) if num_bytes > MAX_ON_LOOP_BYTES else call()
