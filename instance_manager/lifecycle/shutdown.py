"""The end of all instances at once: asked for synchronously, waited for whatever happens meanwhile."""

from __future__ import annotations

import asyncio

from instance_manager.lifecycle.supervisor import Supervisor


def request_end(supervisor: Supervisor, drain_timeout_s: float) -> int:
    """Let go who follows the log, and have the instance drained, ended and forgotten; the life that ends."""
    supervisor.log.lines.close()
    return supervisor.request_stop(
        "Berth is shutting down", drain_timeout_s=drain_timeout_s, delete=True, shutting_down=True
    )


def request_detach(supervisor: Supervisor, drain_timeout_s: float) -> int:
    """Let go who follows the log, and have the instance drained and left as it is; the life that ends so."""
    supervisor.log.lines.close()
    return supervisor.request_detach(drain_timeout_s)


async def all_ended(ending: list[tuple[Supervisor, int]]) -> None:
    """Return when each of these lives is over."""
    await asyncio.gather(*(supervisor.ended(life) for supervisor, life in ending))


async def wait_shielded(task: asyncio.Task[None]) -> None:
    """Wait for a task that bounds its own time, whatever cancellation comes meanwhile; then pass that on."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
