"""Puts an engine to sleep and wakes it up: refuses new requests, aborts or awaits running ones.

Belongs to the event loop; memory is freed and allocated in the engine's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from typing import Protocol

from engine.core.sleep import ALL_PARTS, SLEEP_LEVELS, Part, SleepMode, SleepState
from engine.errors import EngineAsleep, InvalidRequest


class Sleeps(Protocol):
    """The sleep interface of the object that the engine's thread works with."""

    def sleep(self, level: int) -> None:
        """Free the KV cache's memory, losing its content; at level 2 the weights' too.

        If it fails, nothing has changed.
        """
        ...

    def wake_up(self, parts: Set[Part]) -> None:
        """Allocate again what `sleep` freed of these parts. May be called again, also after a failure."""
        ...


class SleepController:
    def __init__(
        self,
        call: Callable[..., Awaitable[None]],
        *,
        idle: asyncio.Event,
        abort_all: Callable[[], None],
    ) -> None:
        """`call` calls a method of Sleeps, with arguments, in the engine's thread.

        `idle` is set while no request runs.
        """
        self._call = call
        self._idle = idle
        self._abort_all = abort_all
        self._state = SleepState()
        self._is_falling_asleep = False
        self._lock = asyncio.Lock()  # one sleep or wake-up at a time

    @property
    def state(self) -> SleepState:
        return self._state

    @property
    def is_sleeping(self) -> bool:
        """Whether requests are refused: from the call of `sleep` until the last part is awake."""
        return self._is_falling_asleep or bool(self._state.asleep)

    def check_awake(self) -> None:
        """Raise EngineAsleep unless requests are accepted."""
        if not self.is_sleeping:
            return
        if self._is_falling_asleep:
            raise EngineAsleep("The engine is falling asleep; POST /wake_up first.")
        parts = ", ".join(part for part in Part if part in self._state.asleep)
        raise EngineAsleep(f"The engine is asleep ({parts}); POST /wake_up first.")

    async def sleep(self, level: int, mode: SleepMode) -> None:
        """Free the KV cache's memory, and at level 2 the weights' too; returns when that is done.

        From now on new requests are refused with EngineAsleep; running ones are aborted or awaited. A cancel
        while waiting leaves the engine as it was. Raises InvalidRequest for another level, EngineDead.
        """
        if level not in SLEEP_LEVELS:
            raise InvalidRequest(f"level is {level}; it must be 1 or 2.", param="level")
        async with self._lock:
            self._is_falling_asleep = True
            try:
                if mode is SleepMode.ABORT:
                    self._abort_all()
                await self._idle.wait()
                await self._fall_asleep(level)
            finally:
                self._is_falling_asleep = False

    async def _fall_asleep(self, level: int) -> None:
        before, self._state = self._state, self._state.after_sleep(level)
        try:
            await self._call("sleep", level)
        except Exception:  # but not if cancelled: the thread completes it anyway
            self._state = before
            raise

    async def wake_up(self, parts: Set[Part] = ALL_PARTS) -> None:
        """Allocate memory again, reloading dropped weights; does nothing for parts that are awake.

        Raises what that raises, such as OutOfMemory: the parts then still sleep, and waking can be retried.
        """
        async with self._lock:
            if asleep := parts & self._state.asleep:
                await self._call("wake_up", asleep)
                self._state = self._state.after_wake_up(asleep)
