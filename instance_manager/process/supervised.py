"""An engine under its shim, seen from Berth: started by us, or found again and not our child. Linux only.

`pid` is the engine's, whose session and group it leads; the shim is its parent. Where there is no shim,
`process.ProcessGroup` does what it can.
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
# -I also keeps the shim's own folder out of the module path: there lies a `types.py` that isn't Python's.
_INTERPRETER = (sys.executable, "-I", "-S")
_KILL_DEADLINE_S = 10.0  # for the shim to take its tree down (large GPU contexts need seconds)
_SWEEP_DEADLINE_S = 5.0
_LAST_BREATH_S = 1.0  # for the engine of a shim that was killed: the kernel kills it in microseconds
_POLL_S = 0.005


def can_supervise() -> bool:
    """Whether engines can run under a shim: Linux, and a Python with ctypes."""
    return sys.platform == "linux" and importlib.util.find_spec("_ctypes") is not None


class SupervisedProcess(EngineProcess):
    """Made by `spawn` or `adopt`; ended by `end`."""

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
        die_with_us: bool = False,
    ) -> SupervisedProcess:
        """Start `argv` under a shim, its output to the file descriptor `output`. Raises OSError.

        `cgroup`: a delegated one, see `cgroups.delegated`. With `die_with_us` the tree ends with the thread
        that runs the event loop, so nothing is left to adopt.
        """
        options = [f"--status={status_path}"]
        if cgroup is not None:
            options.append(f"--cgroup={cgroup}")
        if die_with_us:
            options.append(f"--die-with-parent={os.getpid()}")
        read_end, write_end = os.pipe()
        try:
            try:
                await asyncio.to_thread(_make_room, status_path)
                command = [*_INTERPRETER, _SHIM, *options, f"--report={write_end}", "--", *argv]
                child = _start(command, env, cwd, output, write_end)
            finally:
                os.close(write_end)
            shim = ProcessId.of(child.pid)
            shim_exit = asyncio.create_task(_exit_of_child(child, shim), name=f"exit of shim {child.pid}")
            try:
                engine = _engine_of(await _read_to_end(read_end), argv[0])
            except BaseException:
                shim.send(KILL_SIGNAL)  # before the engine is executed it ends the shim, later the whole tree
                await asyncio.wait((shim_exit,), timeout=_KILL_DEADLINE_S)
                raise
        finally:
            os.close(read_end)
        return cls(engine, shim, env.get(TOKEN_VARIABLE, ""), status_path, shim_exit)

    @classmethod
    def adopt(cls, status: RunStatus, status_path: Path) -> SupervisedProcess:
        """Take over a run that `can_be_adopted`; one that has ended since is seen to have `exited`."""
        name = f"exit of shim {status.shim_pid}"
        shim_exit = asyncio.create_task(_exit_of_stranger(status.shim), name=name)
        return cls(status.engine, status.shim, status.token, status_path, shim_exit)

    def __repr__(self) -> str:
        return f"<SupervisedProcess {self.pid} exited={self.exited.done()} gone={self._shim_exit.done()}>"

    async def end(self, grace_s: float) -> bool:
        """End the whole tree: SIGTERM to the engine's group, `grace_s` seconds, SIGKILL. Whether it is gone.

        With no grace the SIGTERM is left out.
        """
        if grace_s > 0:
            self._tell(signal.SIGTERM)
            if await self._shim_ends_within(grace_s):
                return await self._sweep()
            logger.warning("engine %d's tree ignored SIGTERM for %.1f s: killing it", self.pid, grace_s)
        self._tell(KILL_SIGNAL)
        if not await self._shim_ends_within(_KILL_DEADLINE_S):
            logger.error("the tree of engine %d outlives SIGKILL; killing its shim as well", self.pid)
        return await self._sweep()

    def let_go(self) -> None:
        """Watch it no longer and leave it alone: another Berth may adopt it."""
        self.exited.cancel()
        self._shim_exit.cancel()

    def kill_now(self) -> None:
        """Have the tree killed without waiting: for the moment when nothing can be awaited any more."""
        self._tell(KILL_SIGNAL)

    def _tell(self, signum: signal.Signals) -> None:
        if not self._shim_exit.done():
            self._shim.send(signum)
            self._shim.send(signal.SIGCONT)  # somebody may have stopped it

    async def _shim_ends_within(self, timeout_s: float) -> bool:
        await asyncio.wait((self._shim_exit,), timeout=timeout_s)
        return self._shim_exit.done()

    async def _sweep(self) -> bool:
        """A shim that is through has left nobody. One that was killed may have; whether they are gone now."""
        status = await self._own_status()
        if status is not None and status.emptied_at is not None and self._shim_exit.done():
            gone = True
        else:
            logger.warning("engine %d has lost its shim: looking for what is left of its tree", self.pid)
            gone = await kill_until_gone(self._token, self._engine, _SWEEP_DEADLINE_S)
        if not gone:
            logger.error("the tree of engine %d is still there after SIGKILL", self.pid)
            return False
        await asyncio.wait((self.exited,))
        return True

    async def _until_ended(self) -> int:
        """The engine's return code, as soon as it has ended: the rest of its tree may still be there."""
        engine_exit = asyncio.create_task(wait_for_exit(self._engine), name=f"end of {self._engine.pid}")
        try:
            await asyncio.wait((engine_exit, self._shim_exit), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((engine_exit,), timeout=_LAST_BREATH_S)
        finally:
            engine_exit.cancel()
        while not self._shim_exit.done():
            if (returncode := await self._noted_returncode()) is not None:
                return returncode
            await asyncio.wait((self._shim_exit,), timeout=_POLL_S)
        returncode = await self._noted_returncode()
        return self._shim_exit.result() if returncode is None else returncode

    async def _noted_returncode(self) -> int | None:
        status = await self._own_status()
        return None if status is None else status.returncode

    async def _own_status(self) -> RunStatus | None:
        status = await asyncio.to_thread(read_status, self._status_path)
        return status if status is not None and status.shim == self._shim else None


def _make_room(status_path: Path) -> None:
    """Take the status of an earlier run away. A full disk is no reason not to run: only adoption needs it."""
    try:
        status_path.parent.mkdir(parents=True, exist_ok=True)
        status_path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("how the engine ends can't be noted: %s", error)


def _engine_of(report: bytes, program: str) -> ProcessId:
    """What the shim says once the engine is executed. Raises OSError."""
    match report.split():
        case [b"error", number]:
            raise OSError(int(number), os.strerror(int(number)), program)
        case [pid, start_ticks]:
            return ProcessId(int(pid), int(start_ticks))
    raise OSError(f"the shim has ended before it could start {program!r}; the engine's log has its words")


async def _read_to_end(descriptor: int) -> bytes:
    """A few bytes from a pipe. Its writer is the shim: the engine does not inherit it."""
    said = b""
    while True:
        await wait_readable(descriptor)
        chunk = os.read(descriptor, 4096)
        if not chunk:
            return said
        said += chunk


def _start(
    command: Sequence[str], env: Mapping[str, str], cwd: str | None, output: int, inherited: int
) -> subprocess.Popen[bytes]:
    """The shim, as a child that nothing of asyncio's kills when the loop is closed: it may outlive us.

    Takes a millisecond or two, and belongs to the thread that the tree may be bound to.
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


async def _exit_of_child(child: subprocess.Popen[bytes], process: ProcessId) -> int:
    """Its return code; it is reaped then."""
    await wait_for_exit(process)
    while (returncode := child.poll()) is None:  # noqa: ASYNC110 - nothing tells us
        await asyncio.sleep(_POLL_S)  # without descriptors left, it only seemed to have ended
    return returncode


async def _exit_of_stranger(process: ProcessId) -> int:
    """Nobody but its parent learns a return code; a shim that could not note one was killed."""
    await wait_for_exit(process)
    return -signal.SIGKILL
