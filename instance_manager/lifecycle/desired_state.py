"""What an instance is meant to become, as others have asked for it; its supervisor pursues it."""

from __future__ import annotations

import asyncio
from enum import Enum, auto


class Desired(Enum):
    RUNNING = auto()
    STOPPED = auto()
    DELETED = auto()
    DETACHED = auto()  # left as it is, for the next Berth


class Goal:
    """Written by whoever asks, at once; `changed` is done then, and replaced by a new future."""

    def __init__(self) -> None:
        self.desired = Desired.RUNNING
        self.life = 1  # the number of the one that is wanted
        self.level = 0  # of sleep; 0 = awake
        self.reason = ""  # why the present life is to end
        self.drain_timeout_s = 0.0  # for requests in flight, when it ends
        self.sleep_error: str | None = None  # why it does not sleep although it was asked to
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def announce(self) -> None:
        """It has changed."""
        self.changed.set_result(None)
        self.changed = asyncio.get_running_loop().create_future()

    def want_new_life(self) -> None:
        self.desired = Desired.RUNNING
        self.life += 1
        self.announce()
