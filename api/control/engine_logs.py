"""The logs of several engines as one stream: those that run, and those that start while a client reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from instance_manager.errors import InstanceNotFound
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.types import InstanceState

_UNREAD_LINES = 10_000  # while the client is slow; further ones are dropped


def last_lines(manager: InstanceManager, tail: int) -> list[str]:
    """Of all running engines, one after another."""
    lines = ((one, line) for one in manager.list() for line in manager.read_log(one.instance_id, tail))
    return [_prefixed(one, line) for one, line in lines]


class EngineLogs:
    """Of all instances, or of one model's."""

    def __init__(self, manager: InstanceManager, only: Model | None = None) -> None:
        self._manager = manager
        self._only = only
        self._lines: asyncio.Queue[str] = asyncio.Queue(_UNREAD_LINES)
        self._followers: dict[str, asyncio.Task[None]] = {}

    async def follow(self, tail: int) -> AsyncIterator[str]:
        """The last `tail` lines of each, then new ones until a shutdown begins."""
        for one in self._manager.list():
            self._add(one, tail)
        watcher = asyncio.create_task(self._add_new())
        try:
            while not (watcher.done() and self._lines.empty()):
                getting = asyncio.ensure_future(self._lines.get())
                await asyncio.wait((getting, watcher), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield getting.result()
                else:
                    getting.cancel()
        finally:
            tasks = (watcher, *self._followers.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _add_new(self) -> None:
        """Once a process is spawned: then its log is open."""
        async for event in self._manager.events.subscribe():
            if event.type == "instance.state" and event.data["status"] == InstanceState.HEALTH_CHECKING:
                try:
                    self._add(self._manager.get(event.instance_id), 0)
                except InstanceNotFound:
                    continue

    def _add(self, instance: Instance, tail: int) -> None:
        if self._only is not None and instance.instance_id not in self._only.replicas:
            return
        known = self._followers.get(instance.instance_id)
        if known is None or known.done():
            self._followers[instance.instance_id] = asyncio.create_task(self._copy(instance, tail))

    async def _copy(self, instance: Instance, tail: int) -> None:
        async for line in self._manager.follow_log(instance.instance_id, tail):
            if not self._lines.full():
                self._lines.put_nowait(_prefixed(instance, line))


def _prefixed(instance: Instance, line: str) -> str:
    return f"[{instance.instance_id}] {line}\n"
