"""The child process that works on the hub's cache: starts it, reads its output, ends its process group."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from instance_manager.errors import ManagerError
from instance_manager.lifecycle.shutdown import wait_shielded
from instance_manager.process.environment import child_environment
from instance_manager.process.process_group import ProcessGroup

logger = logging.getLogger("berth.manager")

Line = Mapping[str, Any]  # one JSON object of the child's output

_ROOT = Path(__file__).resolve().parents[2]  # the directory that holds the package `instance_manager`
_TERM_GRACE_S = 1.0
_STDERR_TAIL_BYTES = 2000


class HubProcessDied(ManagerError):
    """The child ended without a result or could not be started; Berth's log has its output."""

    code = "hub_process_died"


class HubProcess:
    """A running child. Its lines end with one that has `error`, or `status` "success"."""

    def __init__(self, child: asyncio.subprocess.Process, process: ProcessGroup, stderr: IO[bytes]) -> None:
        self._child = child
        self._process = process
        self._stderr = stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    async def lines(self) -> AsyncGenerator[Line]:
        """The child's output up to its last line. Raises HubProcessDied if that never comes."""
        assert self._child.stdout is not None  # noqa: S101 - spawned with a pipe; narrows the type
        async for raw in self._child.stdout:
            line: Line = json.loads(raw)
            yield line
            if "error" in line or line.get("status") == "success":
                return
        status = await asyncio.shield(self._process.exited)
        logger.error("the hub process %d ended with status %d: %s", self.pid, status, self._stderr_tail())
        raise HubProcessDied(
            f"the process that talks to the hub ended with status {status} without a result; "
            "see Berth's log for its output"
        )

    def _stderr_tail(self) -> str:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _STDERR_TAIL_BYTES))
        return self._stderr.read().decode(errors="replace").strip()


@asynccontextmanager
async def hub_process(*arguments: str, env: Mapping[str, str]) -> AsyncIterator[HubProcess]:
    """Start `pull_child` with these arguments; on exit from the context, its whole process group is gone.

    `env` extends Berth's environment, from which Berth's own settings are removed. Raises HubProcessDied.
    """
    with tempfile.TemporaryFile() as stderr:
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "instance_manager.hub.pull_child",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=child_environment(os.environ, env),
                cwd=_ROOT,
                start_new_session=True,
            )
        except OSError as exc:
            raise HubProcessDied(f"the process that talks to the hub can't be started: {exc}") from exc
        process = ProcessGroup(child)
        try:
            yield HubProcess(child, process, stderr)
        finally:
            await wait_shielded(asyncio.create_task(_end(process), name=f"end of {process.pid}"))


async def _end(process: ProcessGroup) -> None:
    await process.end(_TERM_GRACE_S)
