"""An engine in a container, by the program that started it and shows its output.

That program (the *client*) is the child of a shim like any engine. When it exits, the engine counts as ended,
and what is left of its container is removed: also when somebody killed the client alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
from pathlib import Path

from instance_manager.process.containers.command import run_id_of
from instance_manager.process.containers.runtime import ContainerRuntime, ContainerState, RuntimeUnavailable
from instance_manager.process.process_group import EngineProcess, PortOwner, listening_ports, port_owner
from instance_manager.process.process_tree import ProcessId, kill_until_gone
from instance_manager.process.shim import TOKEN_VARIABLE
from instance_manager.types import Container

logger = logging.getLogger("berth.manager")

CLIENT_EXIT_S = 5.0  # for the client and the runtime's own processes, once the container is gone
_REMOVAL_S = 10.0
_POLL_MIN_S = 0.05
_POLL_MAX_S = 1.0  # while an image is downloaded


class ContainerProcess(EngineProcess):
    """Made of a running client; ended by `end`. `pid` is the client's."""

    def __init__(
        self,
        client: EngineProcess,
        runtime: ContainerRuntime,
        token: str,
        id_file: Path,
        *,
        image: str,
        is_on_host_network: bool,
    ) -> None:
        """`token`: of the run. `id_file`: where the client writes its container's id."""
        super().__init__(client.pid, client.exited)
        self.image = image
        self.final: ContainerState | None = None  # the container's state before it was removed
        self._client = client
        self._runtime = runtime
        self._run_id = run_id_of(token)
        self._token = token
        self._id_file = id_file
        self._is_on_host_network = is_on_host_network
        self._main: ProcessId | None = None
        self.located = asyncio.create_task(self._locate(), name=f"container of {client.pid}")

    def __repr__(self) -> str:
        return f"<ContainerProcess {self._run_id} of {self._client!r}>"

    async def end(self, grace_s: float) -> bool:
        """Stop the container, then remove it. Returns whether it and its client are gone."""
        self.located.cancel()
        was_running = not self.exited.done()
        ids = await self._containers()
        if ids and grace_s > 0 and not self.exited.done():
            await self._stop(ids, grace_s)
        elif not ids and not self.exited.done():  # it downloads the image, or can't reach the runtime
            await self._client.end(grace_s)
        if ids:
            self.final = await self._inspect(ids[0])
        is_removed = await self._remove()
        await self._client.gone_within(CLIENT_EXIT_S)
        is_client_gone = await self._client.end(0)
        if was_running and not ids and is_removed:  # the client may have made its container meanwhile
            is_removed = await self._remove()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._id_file.unlink, missing_ok=True)
        return is_client_gone and is_removed

    def kill_now(self) -> None:
        """Without waiting; the container is told to end by a program that nobody awaits."""
        self.located.cancel()
        with contextlib.suppress(OSError):
            container_id = self._id_file.read_text().strip()
            subprocess.Popen(
                [self._runtime.program, "rm", "--force", "--volumes", container_id],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._client.kill_now()

    @property
    def can_be_adopted(self) -> bool:
        return self._client.can_be_adopted

    def detach(self) -> None:
        self.located.cancel()
        self._client.detach()

    async def gone_within(self, timeout_s: float) -> bool:
        return await self._client.gone_within(timeout_s)

    def port_owner(self, port: int) -> PortOwner:
        """A published port belongs to the runtime, which refuses one that is taken."""
        if self._main is None or not self._is_on_host_network:
            return PortOwner.UNKNOWN
        return port_owner(self._main.pid, port)

    def listening_ports(self) -> list[int]:
        if self._main is None or not self._is_on_host_network:
            return []
        return listening_ports(self._main.pid)

    async def _locate(self) -> Container | None:
        """The container once it runs; None if the client ends before."""
        interval = _POLL_MIN_S
        while not self.exited.done():
            state = await self._running_state()
            if state is not None:
                self._main = main_process(state, self._token)
                pid, ticks = (self._main.pid, self._main.start_ticks) if self._main else (None, None)
                return Container(state.name, state.container_id, pid, ticks)
            await asyncio.wait((self.exited,), timeout=interval)
            interval = min(interval * 1.2, _POLL_MAX_S)
        return None

    async def _running_state(self) -> ContainerState | None:
        container_id = await asyncio.to_thread(_read, self._id_file)
        if not container_id:
            return None
        state = await self._inspect(container_id)
        return state if state is not None and state.is_running else None

    async def _inspect(self, container_id: str) -> ContainerState | None:
        try:
            return await self._runtime.inspect(container_id)
        except RuntimeUnavailable as error:
            logger.warning("container %.12s can't be inspected: %s", container_id, error)
            return None

    async def _containers(self) -> list[str]:
        try:
            return await self._runtime.of_run(self._run_id)
        except RuntimeUnavailable as error:
            logger.warning("the container of process %d can't be looked for: %s", self.pid, error)
            return []

    async def _stop(self, ids: list[str], grace_s: float) -> None:
        try:
            await self._runtime.stop(ids, grace_s)
        except RuntimeUnavailable as error:
            logger.warning("the container of process %d can't be stopped: %s", self.pid, error)

    async def _remove(self) -> bool:
        """Whether it is gone. If the runtime is away: whether it never was, or its processes are gone."""
        was_made = bool(await asyncio.to_thread(_read, self._id_file))
        if await self._runtime.remove_run(self._run_id, _REMOVAL_S if was_made else 0.0):
            return True
        if was_made:
            logger.error("the container of process %d can't be removed: its processes are killed", self.pid)
        if self._main is None:
            return not was_made
        return await kill_until_gone(self._token, self._main, _REMOVAL_S) and not self._main.is_alive


def main_process(state: ContainerState, token: str) -> ProcessId | None:
    """The container's first process, if it is one of this system and can be recognised, else None.

    A runtime may count its pids elsewhere: in a virtual machine, or outside of the container that we are in.
    """
    if state.pid <= 0:
        return None
    process = ProcessId.of(state.pid)
    directory = Path("/proc", str(state.pid))
    is_ours = state.container_id in _read(directory / "cgroup")
    if not is_ours and token:
        is_ours = f"{TOKEN_VARIABLE}={token}" in _read(directory / "environ").split("\0")
    return process if is_ours and process.is_alive else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
