"""Berth's handle of an engine under its shim: our child, or adopted and not our child. Linux only.

`pid` is the engine's, which leads its session and group; the shim is its parent. Without a shim,
`process_group.ProcessGroup` is used.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from instance_manager.process.process_group import EngineProcess
from instance_manager.process.process_tree import (
    ProcessId,
    RunStatus,
    kill_until_gone,
    read_status,
    wait_for_exit,
    wait_readable,
)
from instance_manager.process.shim import KILL_SIGNAL, TOKEN_VARIABLE

logger = logging.getLogger("berth.manager")

_SHIM = str(Path(__file__).with_name("shim.py"))
# -I also keeps the shim's directory out of the module path, where a file could shadow a standard module.
_INTERPRETER = (sys.executable, "-I", "-S")
_KILL_DEADLINE_S = 10.0  # for the shim to end its tree (large GPU contexts take seconds)
_SWEEP_DEADLINE_S = 5.0
_ORPHAN_EXIT_S = 1.0  # for the engine of a killed shim, which the kernel kills within microseconds
_POLL_S = 0.005


def can_supervise() -> bool:
    """Whether engines can run under a shim: on Linux, with a Python that has ctypes."""
    return sys.platform == "linux" and importlib.util.find_spec("_ctypes") is not None


class SupervisedProcess(EngineProcess):
    """Created by `spawn` or `adopt`; ended by `end`."""

    def __init__(
        self, engine: ProcessId, shim: ProcessId, token: str, status_path: Path, shim_exit: asyncio.Task[int]
    ) -> None:
        self._engine = engine
        self._shim = shim
        self._token = token
        self._status_path = status_path
        self._shim_exit = shim_exit  # its return code
        super().__init__(engine.pid, asyncio.create_task(self._until_ended(), name=f"exit of {engine.pid}"))

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None,
        output: int,
        status_path: Path,
        *,
        cgroup: str | None = None,
        die_with_parent: bool = False,
        linger_s: float = 0.0,
    ) -> SupervisedProcess:
        """Start `argv` under a shim, with output to the file descriptor `output`. Raises OSError.

        `cgroup`: a delegated one, see `delegated_cgroup`. With `die_with_parent` the tree ends with the
        thread that runs the event loop, so there is nothing to adopt. `linger_s`: how long the rest of the
        tree may run on when the engine has exited by itself.
        """
        options = [f"--status={status_path}"]
        if cgroup is not None:
            options.append(f"--cgroup={cgroup}")
        if die_with_parent:
            options.append(f"--die-with-parent={os.getpid()}")
        if linger_s:
            options.append(f"--linger={linger_s}")
        read_end, write_end = os.pipe()
        try:
            try:
                await asyncio.to_thread(_remove_old_status, status_path)
                command = [*_INTERPRETER, _SHIM, *options, f"--report={write_end}", "--", *argv]
                child = _start_shim(command, env, cwd, output, write_end)
            finally:
                os.close(write_end)
            shim = ProcessId.of(child.pid)
            shim_exit = asyncio.create_task(_wait_for_child(child, shim), name=f"exit of shim {child.pid}")
            try:
                engine = _parse_report(await _read_to_end(read_end), argv[0])
            except BaseException:
                shim.send(KILL_SIGNAL)  # ends the shim, and the engine if it has been executed
                await asyncio.wait((shim_exit,), timeout=_KILL_DEADLINE_S)
                raise
        finally:
            os.close(read_end)
        return cls(engine, shim, env.get(TOKEN_VARIABLE, ""), status_path, shim_exit)

    @classmethod
    def adopt(cls, status: RunStatus, status_path: Path) -> SupervisedProcess:
        """Adopt an engine; if it has ended since, `exited` is done."""
        name = f"exit of shim {status.shim_pid}"
        shim_exit = asyncio.create_task(_wait_for_adopted(status.shim), name=name)
        return cls(status.engine, status.shim, status.token, status_path, shim_exit)

    def __repr__(self) -> str:
        return f"<SupervisedProcess {self.pid} exited={self.exited.done()} gone={self._shim_exit.done()}>"

    async def end(self, grace_s: float) -> bool:
        """End the tree: SIGTERM to the engine's group, `grace_s` seconds, SIGKILL. Whether it is gone.

        Without grace, no SIGTERM is sent.
        """
        if grace_s > 0:
            self._signal_shim(signal.SIGTERM)
            if await self.gone_within(grace_s):
                return await self._sweep()
            logger.warning("engine %d's tree ignored SIGTERM for %.1f s: killing it", self.pid, grace_s)
        self._signal_shim(KILL_SIGNAL)
        if not await self.gone_within(_KILL_DEADLINE_S):
            logger.error("the tree of engine %d survived SIGKILL; killing its shim as well", self.pid)
        return await self._sweep()

    @property
    def can_be_adopted(self) -> bool:
        return True

    def detach(self) -> None:
        self.exited.cancel()
        self._shim_exit.cancel()

    def kill_now(self) -> None:
        """Have the tree killed without waiting, for callers that can't await."""
        self._signal_shim(KILL_SIGNAL)

    def _signal_shim(self, signum: signal.Signals) -> None:
        if not self._shim_exit.done():
            self._shim.send(signum)
            self._shim.send(signal.SIGCONT)  # in case it was stopped

    async def gone_within(self, timeout_s: float) -> bool:
        await asyncio.wait((self._shim_exit,), timeout=timeout_s)
        return self._shim_exit.done()

    async def _sweep(self) -> bool:
        """After a normal exit of the shim the tree is empty; else kill the rest. Whether all are gone."""
        status = await self._own_status()
        if status is not None and status.emptied_at is not None and self._shim_exit.done():
            gone = True
        else:
            logger.warning("engine %d has lost its shim: killing what is left of its tree", self.pid)
            gone = await kill_until_gone(self._token, self._engine, _SWEEP_DEADLINE_S)
        if not gone:
            logger.error("the tree of engine %d is still there after SIGKILL", self.pid)
            return False
        await asyncio.wait((self.exited,))
        return True

    async def _until_ended(self) -> int:
        """The engine's return code as soon as it exits; the rest of its tree may still be running."""
        engine_exit = asyncio.create_task(wait_for_exit(self._engine), name=f"end of {self._engine.pid}")
        try:
            await asyncio.wait((engine_exit, self._shim_exit), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((engine_exit,), timeout=_ORPHAN_EXIT_S)
        finally:
            engine_exit.cancel()
        while not self._shim_exit.done():
            if (returncode := await self._recorded_returncode()) is not None:
                return returncode
            await asyncio.wait((self._shim_exit,), timeout=_POLL_S)
        returncode = await self._recorded_returncode()
        return self._shim_exit.result() if returncode is None else returncode

    async def _recorded_returncode(self) -> int | None:
        status = await self._own_status()
        return None if status is None else status.returncode

    async def _own_status(self) -> RunStatus | None:
        status = await asyncio.to_thread(read_status, self._status_path)
        return status if status is not None and status.shim == self._shim else None


def _remove_old_status(status_path: Path) -> None:
    """Prepare for a new status file. Errors such as a full disk are only logged: adoption alone needs it."""
    try:
        status_path.parent.mkdir(parents=True, exist_ok=True)
        status_path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the engine's status file can't be prepared: %s", error)


def _parse_report(report: bytes, program: str) -> ProcessId:
    """The engine's id, which the shim reports once it is executed. Raises OSError."""
    match report.split():
        case [b"error", number]:
            raise OSError(int(number), os.strerror(int(number)), program)
        case [pid, start_ticks]:
            return ProcessId(int(pid), int(start_ticks))
    raise OSError(f"the shim has ended before it could start {program!r}; see the engine's log")


async def _read_to_end(descriptor: int) -> bytes:
    """Read a few bytes from a pipe to its end. Only the shim writes to it: the engine does not inherit it."""
    content = b""
    while True:
        await wait_readable(descriptor)
        chunk = os.read(descriptor, 4096)
        if not chunk:
            return content
        content += chunk


def _start_shim(
    command: Sequence[str], env: Mapping[str, str], cwd: str | None, output: int, inherited: int
) -> subprocess.Popen[bytes]:
    """Start the shim as a child that asyncio doesn't kill when the loop is closed, so that it may outlive us.

    Takes a millisecond or two, and must run in the thread that `die_with_parent` may bind the tree to.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=dict(env),
        cwd=cwd,
        pass_fds=(inherited,),
        start_new_session=True,
    )


async def _wait_for_child(child: subprocess.Popen[bytes], process: ProcessId) -> int:
    """Reap the child and return its return code."""
    await wait_for_exit(process)
    while (returncode := child.poll()) is None:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(_POLL_S)  # without free descriptors, `wait_for_exit` may return early
    return returncode


async def _wait_for_adopted(process: ProcessId) -> int:
    """Only a parent gets the return code; a shim that could not record the engine's was killed."""
    await wait_for_exit(process)
    return -signal.SIGKILL
