"""Runs work on bytes at once, or in a thread if it would block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

MAX_ON_LOOP_BYTES = 256 * 1024  # JSON of this size takes a millisecond or two

T = TypeVar("T")


async def off_loop(num_bytes: int, call: Callable[[], T]) -> T:
    """Run `call`; in a thread if there are so many bytes that it would block the event loop."""
    return await asyncio.to_thread(call) if num_bytes > MAX_ON_LOOP_BYTES else call()
