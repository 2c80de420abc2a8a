"""Finds the processes of an engine: by its shim's status file, by its token in the environment, by session.

With it a new Berth process recognises the engines of the previous one. Apart from the coroutines, functions
block for milliseconds. The status file exists only where the shim runs (Linux).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from instance_manager.process.shim import TOKEN_VARIABLE, read_stat, send

_FREEZE_ROUNDS = 20
_POLL_S = 0.1  # for an exit, if the kernel or Python has no pidfd


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Identifies a process: its pid may be reused, its pid together with its start time is not."""

    pid: int
    start_ticks: int  # since boot

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this pid now; an unreaped child keeps its pid."""
        stat = read_stat(pid)
        return cls(pid, stat.start_ticks if stat is not None else 0)

    @property
    def is_alive(self) -> bool:
        """False for a zombie."""
        stat = read_stat(self.pid)
        return stat is not None and stat.start_ticks == self.start_ticks and stat.is_alive

    def send(self, signum: int) -> bool:
        """Signal this process and never another with its pid; returns whether it exists."""
        return send((self.pid, self.start_ticks), signum)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What a shim has recorded about its engine. Times in seconds since the epoch."""

    token: str
    boot_id: str
    shim_pid: int
    shim_start_ticks: int
    engine_pid: int
    engine_start_ticks: int
    cgroup: str | None
    started_at: float
    ended_at: float | None  # None = the engine is running, or the shim was killed
    ran_s: float | None
    returncode: int | None  # negative for a signal
    emptied_at: float | None  # when the tree was empty

    @property
    def shim(self) -> ProcessId:
        return ProcessId(self.shim_pid, self.shim_start_ticks)

    @property
    def engine(self) -> ProcessId:
        return ProcessId(self.engine_pid, self.engine_start_ticks)


def read_status(path: Path) -> RunStatus | None:
    """None if there is no valid file: files are written atomically, so the shim could not write one."""
    try:
        recorded = json.loads(path.read_text())
        return RunStatus(**{field.name: recorded[field.name] for field in fields(RunStatus)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_by_token(tokens: Collection[str]) -> dict[str, list[psutil.Process]]:
    """The live processes with each token in their environment, shims included; without entries for none."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            token = process.environ().get(TOKEN_VARIABLE)
            if token and token in tokens and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(token, []).append(process)
    return found


def find_by_prefix(prefix: str) -> dict[str, list[psutil.Process]]:
    """The live processes whose token has this prefix, by token."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            token = process.environ().get(TOKEN_VARIABLE, "")
            if token.startswith(prefix) and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(token, []).append(process)
    return found


def find_tree(token: str, engine: ProcessId | None) -> set[psutil.Process]:
    """An engine's live processes: those with its token or in its session, and all their descendants.

    For use when the shim is gone; `engine` is None if unknown. A process may overwrite its environment or
    leave its session: the two searches together find what either alone would miss.
    """
    roots = set(find_by_token((token,)).get(token, ())) if token else set()
    if engine is not None:
        roots |= set(_session_members(engine))
    tree = set(roots)
    for root in roots:
        with contextlib.suppress(psutil.Error):
            tree |= {child for child in root.children(recursive=True) if _is_alive(child)}
    return tree


def kill_tree(token: str, engine: ProcessId | None) -> bool:
    """SIGKILL all of them, frozen first so that none can fork. Returns whether there were any."""
    frozen: set[psutil.Process] = set()
    for _ in range(_FREEZE_ROUNDS):
        new = find_tree(token, engine) - frozen
        if not new:
            break
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        frozen |= new
    for process in frozen:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return bool(frozen)


async def kill_until_gone(token: str, engine: ProcessId | None, timeout_s: float) -> bool:
    """Kill the tree until it is empty; returns whether that happened in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while await asyncio.to_thread(kill_tree, token, engine):
        if loop.time() > deadline:
            return False
        await asyncio.sleep(_POLL_S / 10)
    return True


async def wait_for_exit(process: ProcessId) -> None:
    """Wait until the process, our child or not, has exited; it need not be reaped."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        while process.is_alive:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_POLL_S)
        return
    try:
        if process.is_alive:  # so the descriptor refers to this process
            await wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def wait_readable(descriptor: int) -> None:
    """Wait until a pipe has data or is closed, or until a pidfd's process has exited."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _session_members(leader: ProcessId) -> list[psutil.Process]:
    members: list[psutil.Process] = []
    stat = read_stat(leader.pid)
    if stat is not None and stat.start_ticks != leader.start_ticks:
        return members  # the pid was reused, so the session is empty
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader.pid and _is_alive(process):
                members.append(process)
    return members


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
