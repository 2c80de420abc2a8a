"""Removes the containers of earlier runs of this Berth that no instance has.

The folder of the status files remembers which runtimes were ever used, so that others needn't be asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from instance_manager.process.containers.command import RUN_LABEL, RUNTIMES
from instance_manager.process.containers.runtime import ContainerRuntime, RuntimeUnavailable

logger = logging.getLogger("berth.manager")


def remember_runtime(folder: Path, name: str) -> None:
    """Raises OSError."""
    Path(folder, f"uses-{name}").touch()


def remembered_runtimes(folder: Path) -> list[str]:
    """Those that engines of this folder were started with."""
    return [name for name in RUNTIMES if Path(folder, f"uses-{name}").exists()]


async def remove_leftovers(
    owner: str, is_current: Callable[[str], bool], folder: Path, environ: Mapping[str, str]
) -> None:
    """Remove this Berth's containers of runs that aren't current (any more).

    `is_current`: by a run's id; asked last, as runs may begin meanwhile.
    """
    for name in await asyncio.to_thread(remembered_runtimes, folder):
        runtime = ContainerRuntime(name, environ)
        try:
            for container_id in await runtime.of_owner(owner):
                state = await runtime.inspect(container_id)
                if state is not None and not is_current(state.labels.get(RUN_LABEL, "")):
                    logger.warning("removing container %s, which belongs to no instance", state.name)
                    await runtime.remove([container_id])
        except RuntimeUnavailable as error:
            logger.warning("containers of an earlier Berth process can't be removed: %s", error)
