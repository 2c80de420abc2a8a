"""One engine process and its children: spawn, watch, end, reap. Knows nothing of instances or states.

This file manages a process group, all that is possible without a shim; `supervised` manages the whole tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum, auto

import psutil

logger = logging.getLogger("berth.manager")

_KILL_DEADLINE_S = 10.0  # until a killed group is gone (large GPU contexts take seconds)
_POLL_MIN_S = 0.005
_POLL_MAX_S = 0.1


class PortOwner(Enum):
    """Whose process listens on a port."""

    OURS = auto()
    FOREIGN = auto()
    UNKNOWN = auto()  # the platform doesn't tell


class EngineProcess(ABC):
    """A running engine. It leads its own session and process group, so its pid is also its group id."""

    def __init__(self, pid: int, exited: asyncio.Task[int]) -> None:
        self.pid = pid
        self.start_time = _start_time(pid)  # epoch seconds
        self.exited = exited  # done when the engine exits, with its return code; negative for a signal

    @abstractmethod
    async def end(self, grace_s: float) -> bool:
        """End the engine and its children: SIGTERM, `grace_s` seconds, SIGKILL. Returns whether all are gone.

        Without grace, no SIGTERM is sent.
        """

    @abstractmethod
    def kill_now(self) -> None:
        """Send SIGKILL without waiting, for callers that can't await."""

    @abstractmethod
    async def gone_within(self, timeout_s: float) -> bool:
        """Wait for the end of the whole tree without ending it; returns whether it came in time."""

    @property
    def can_be_adopted(self) -> bool:
        """Whether a later Berth process could adopt it."""
        return False

    def detach(self) -> None:
        """Stop watching the engine and let it run."""
        raise NotImplementedError("an engine that can't be adopted isn't left running")

    def port_owner(self, port: int) -> PortOwner:
        """Whether it listens on the TCP port. Blocking."""
        return port_owner(self.pid, port)

    def listening_ports(self) -> list[int]:
        """The TCP ports that it listens on, as far as permissions allow. Blocking."""
        return listening_ports(self.pid)


class ProcessGroup(EngineProcess):
    """A child in its own session and process group; processes that leave the group are lost."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        super().__init__(child.pid, asyncio.create_task(child.wait(), name=f"exit of {child.pid}"))
        self._child = child
        self._group_gone = False

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], env: Mapping[str, str], cwd: str | None, output: int
    ) -> ProcessGroup:
        """Start `argv` with stdout and stderr going to the file descriptor `output`. Raises OSError."""
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        return cls(child)

    def __repr__(self) -> str:
        return f"<ProcessGroup {self.pid} returncode={self._child.returncode} gone={self._group_gone}>"

    async def end(self, grace_s: float) -> bool:
        """See EngineProcess; the leader is always awaited."""
        if grace_s > 0:
            self._signal_group(signal.SIGTERM)
            if await self.gone_within(grace_s):
                return True
            logger.warning("process group %d ignored SIGTERM for %.1f s: killing it", self.pid, grace_s)
        self._signal_group(signal.SIGKILL)
        if await self.gone_within(_KILL_DEADLINE_S):
            return True
        logger.error("process group %d is still there %.0f s after SIGKILL", self.pid, _KILL_DEADLINE_S)
        return False

    def kill_now(self) -> None:
        """See EngineProcess."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, signum: signal.Signals) -> None:
        if self._group_gone:  # the id may belong to another group by now
            return
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            self._group_gone = self._child.returncode is not None
        except PermissionError:  # macOS raises it for a group of zombies
            logger.debug("process group %d can't be signalled", self.pid)

    async def gone_within(self, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await asyncio.wait((self.exited,), timeout=timeout_s)
        interval = _POLL_MIN_S
        while self.exited.done():
            if await self._is_group_gone():
                return True
            remaining = deadline - loop.time()
            if remaining <= 0:
                break
            await asyncio.sleep(min(interval, remaining))
            interval = min(interval * 2, _POLL_MAX_S)
        return False

    async def _is_group_gone(self) -> bool:
        if not self._group_gone:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                self._group_gone = True
            except PermissionError:
                self._group_gone = not await asyncio.to_thread(_has_live_member, self.pid)
            else:
                # killpg still counts unreaped zombies (a container without an init).
                self._group_gone = not await asyncio.to_thread(_has_live_member, self.pid)
        return self._group_gone


def group_members(pgid: int) -> list[psutil.Process]:
    """The live processes of a group, without zombies. Blocking: it reads the process table."""
    members: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def _has_live_member(pgid: int) -> bool:
    return bool(group_members(pgid))


def port_owner(pid: int, port: int) -> PortOwner:
    """Whether `pid` or one of its descendants listens on the TCP port. Blocking."""
    try:
        leader = psutil.Process(pid)
        if _listens(leader, port):
            return PortOwner.OURS
        if any(_listens(child, port) for child in leader.children(recursive=True)):
            return PortOwner.OURS
    except psutil.NoSuchProcess:
        return PortOwner.FOREIGN
    except (psutil.Error, OSError, NotImplementedError):
        return PortOwner.UNKNOWN
    return PortOwner.FOREIGN


def listening_ports(pid: int) -> list[int]:
    """The TCP ports that `pid` and its descendants listen on, as far as permissions allow. Blocking."""
    ports: set[int] = set()
    with contextlib.suppress(psutil.Error, OSError, NotImplementedError):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            connections = process.net_connections(kind="tcp")
            ports |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return sorted(ports)


def _listens(process: psutil.Process, port: int) -> bool:
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in process.net_connections(kind="tcp")
    )


def _start_time(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
