"""The parent process of one engine. It survives Berth, tracks the engine's whole process tree, and ends it.

One file on purpose: Berth runs it by its path, isolated and without site-packages (`-I -S`), so it can import
only the standard library, and each further module would add to the start-up time of every engine.

    python -I -S shim.py [--OPTION=VALUE]… -- ENGINE ARG…

    --status=PATH          JSON file that records the processes and how the engine exited
    --report=FD            gets "PID START_TICKS" once the engine is executed, or "error ERRNO"; then closed
    --cgroup=DIR           a delegated cgroup (version 2); the tree gets its own leaf below it
    --die-with-parent=PID  kill the tree when the parent, which must be PID, is gone
    --linger=SECONDS       for the rest of the tree when the engine has exited by itself; default: none

As a subreaper it inherits all processes that the engine forks, even those that leave the engine's session:
"no child left" means "the tree is empty". It exits only then, in the same way as the engine. SIGTERM, SIGINT
and SIGHUP are passed on to the engine's group as SIGTERM; SIGUSR1 kills the tree. When an engine exits by
itself, its tree is killed at once, or after `--linger`; when it was asked to exit, its tree gets some time.
If the shim is killed, the kernel kills the engine. Linux only.

Knows nothing of Berth's settings, store or protocol.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable

TOKEN_VARIABLE = "BERTH_INSTANCE_TOKEN"  # noqa: S105 - a name
KILL_SIGNAL = signal.SIGUSR1

_TERMINATION_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_AWAITED = frozenset({*_TERMINATION_SIGNALS, KILL_SIGNAL, signal.SIGCHLD})
_LINGER_S = 30.0  # for the rest of the tree once the engine has exited as asked; Berth often kills sooner
_KILL_AGAIN_MIN_S = 0.01
_KILL_AGAIN_MAX_S = 0.5
_FREEZE_ROUNDS = 50
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NOT_EXECUTED = 127


class ProcessStat:
    """A process as described by /proc/PID/stat."""

    __slots__ = ("num_threads", "parent", "start_ticks", "state")

    def __init__(self, line: bytes) -> None:
        fields = line.rpartition(b")")[2].split()  # the name before it may contain spaces and parentheses
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.num_threads = int(fields[17])
        self.start_ticks = int(fields[19])  # since boot; with the pid, identifies a process

    @property
    def is_alive(self) -> bool:
        """ "Z" is a zombie, or a process whose first thread has exited before the others."""
        return self.state not in "ZX" or self.num_threads > 1


def read_stat(pid: int) -> ProcessStat | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return ProcessStat(file.read())
    except OSError:
        return None


def read_boot_id() -> str:
    """Changes with each boot, which invalidates pids and ticks. Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def send(process: tuple[int, int], signum: int) -> bool:
    """Signal the process (pid, start ticks), never another that reuses its pid. Whether it exists."""
    pid, start_ticks = process
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # old kernel or C library: a race of microseconds
        descriptor = None
    try:
        stat = read_stat(pid)
        if stat is None or stat.start_ticks != start_ticks:
            return False
        if descriptor is None:
            os.kill(pid, signum)
        else:
            signal.pidfd_send_signal(descriptor, signum)
    except OSError:  # gone, or another user's
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def descendants(root: int) -> set[tuple[int, int]]:
    """(pid, start ticks) of all live descendants of `root`; reads every process."""
    stats = {
        int(name): stat for name in os.listdir("/proc") if name.isdigit() and (stat := read_stat(int(name)))
    }
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    return _below(root, lambda pid: children.get(pid, []), stats.get)


def near_descendants(root: int) -> set[tuple[int, int]]:
    """The same from the kernel's lists of children: fast, but may miss processes that start meanwhile."""
    return _below(root, _listed_children, read_stat)


def _below(
    root: int, children: Callable[[int], list[int]], stat_of: Callable[[int], ProcessStat | None]
) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    seen = {root}
    parents = [root]
    while parents:
        for pid in children(parents.pop()):
            stat = stat_of(pid)
            if pid not in seen and stat is not None and stat.is_alive:
                found.add((pid, stat.start_ticks))
                seen.add(pid)
                parents.append(pid)
    return found


def _listed_children(pid: int) -> list[int]:
    """Empty also if the kernel keeps no such lists."""
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                children.extend(int(child) for child in file.read().split())
    except OSError:
        return children
    return children


class Status:
    """The status file. Writes are atomic; errors are logged and ignored."""

    def __init__(self, path: str | None, fields: dict[str, object]) -> None:
        self._path = path
        self._fields = fields

    def write(self, **changes: object) -> None:
        self._fields.update(changes)
        if self._path is None:
            return
        draft = f"{self._path}.{os.getpid()}"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w") as file:
                json.dump(self._fields, file)
            os.replace(draft, self._path)
        except OSError as error:  # a full disk must not stop supervision
            _log(f"can't write {self._path}: {error}")


class LeafCgroup:
    """A cgroup for the engine's tree only. The shim stays outside, since `kill` kills all its processes."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: str) -> LeafCgroup | None:
        """None if that isn't allowed, or the kernel can't kill a cgroup (before 5.14)."""
        path = f"{parent}/berth-{os.getpid()}"
        try:
            os.mkdir(path)
        except OSError as error:
            _log(f"the engine gets no cgroup of its own: {error}")
            return None
        leaf = cls(path)
        if not os.access(f"{path}/cgroup.kill", os.W_OK):
            leaf.remove()
            return None
        return leaf

    def enter(self) -> None:
        """Move the calling process into it, and so its future children. An error is only logged."""
        _write(f"{self.path}/cgroup.procs", "0")

    def kill(self) -> None:
        _write(f"{self.path}/cgroup.kill", "1")

    def remove(self) -> None:
        try:
            os.rmdir(self.path)
        except OSError as error:
            _log(f"the cgroup {self.path} can't be removed: {error}")


class Shim:
    """Supervises one engine until its tree is empty. Waits for signals instead of handling them."""

    def __init__(
        self, argv: list[str], status_path: str | None, leaf: LeafCgroup | None, linger_s: float = 0.0
    ) -> None:
        self.returncode = 0  # of the engine; negative for a signal
        self._linger_s = linger_s
        self._leaf = leaf
        self._started = time.monotonic()
        self._started_at = time.time()
        self._deadline: float | None = None  # when the tree is killed, monotonic seconds
        self._termination_requested = False
        self._has_exited = False  # the engine has exited; its pid may be reused then
        self._engine = self._spawn(argv)
        stat = read_stat(self._engine)
        own = read_stat(os.getpid())
        self.report = f"{self._engine} {stat.start_ticks if stat else 0}"
        self._status = Status(
            status_path,
            {
                "token": os.environ.get(TOKEN_VARIABLE, ""),
                "boot_id": read_boot_id(),
                "shim_pid": os.getpid(),
                "shim_start_ticks": own.start_ticks if own else 0,
                "engine_pid": self._engine,
                "engine_start_ticks": stat.start_ticks if stat else 0,
                "cgroup": leaf.path if leaf else None,
                "started_at": self._started_at,  # wall clock, epoch seconds
                "ended_at": None,  # when the engine ended
                "ran_s": None,
                "returncode": None,  # as in Python: negative for a signal
                "emptied_at": None,  # when its tree was empty
            },
        )
        self._status.write()

    def supervise(self) -> None:
        """Return when the tree is empty."""
        pause_s = _KILL_AGAIN_MIN_S
        while self._reap():
            if self._has_exited and self._deadline is None:
                self._deadline = time.monotonic() + (
                    _LINGER_S if self._termination_requested else self._linger_s
                )
            timeout_s = None if self._deadline is None else self._deadline - time.monotonic()
            if timeout_s is not None and timeout_s <= 0:
                self._kill_tree()
                timeout_s = pause_s
                pause_s = min(pause_s * 2, _KILL_AGAIN_MAX_S)
            self._handle_signal(_next_signal(timeout_s))
        if self._leaf is not None:
            self._leaf.remove()
        self._status.write(emptied_at=time.time())

    def _spawn(self, argv: list[str]) -> int:
        """Fork and execute; return the pid. Raises the child's OSError if execution fails."""
        error_pipe, child_end = os.pipe()  # closed by a successful exec
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _exec_engine(argv, parent, self._leaf, child_end)
        os.close(child_end)
        with open(error_pipe, "rb") as pipe:
            error_number = pipe.read()
        if error_number:
            os.waitpid(pid, 0)
            raise OSError(int(error_number), os.strerror(int(error_number)))
        return pid

    def _handle_signal(self, signum: int | None) -> None:
        if signum == KILL_SIGNAL:
            self._deadline = 0.0
        elif signum in _TERMINATION_SIGNALS:
            self._termination_requested = True
            if self._has_exited:
                self._terminate_rest()
            else:
                _signal_group(self._engine, signal.SIGTERM)

    def _terminate_rest(self) -> None:
        """Send SIGTERM to the processes outside the engine's group, which haven't got it yet."""
        for process in descendants(os.getpid()):
            send(process, signal.SIGTERM)

    def _reap(self) -> bool:
        """Reap exited processes; whether any are left. Orphans become our children: no child means none."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._engine and not self._has_exited:
                self._record_exit(os.waitstatus_to_exitcode(status))

    def _record_exit(self, returncode: int) -> None:
        self._has_exited = True
        self.returncode = returncode
        ran_s = round(time.monotonic() - self._started, 3)
        self._status.write(ended_at=time.time(), ran_s=ran_s, returncode=returncode)
        if self._termination_requested:
            self._terminate_rest()

    def _kill_tree(self) -> None:
        """SIGKILL all processes; first freeze them until no new one is found, so that none can fork."""
        if self._leaf is not None:
            self._leaf.kill()
        frozen: set[tuple[int, int]] = set()
        for _ in range(_FREEZE_ROUNDS):
            self._reap()
            own = os.getpid()
            new = near_descendants(own) - frozen or descendants(own) - frozen
            if not new:
                break
            for process in new:
                send(process, signal.SIGSTOP)
            frozen |= new
        for process in frozen:
            send(process, signal.SIGKILL)


def main() -> int:
    """See the module."""
    options, argv = _parse(sys.argv[1:])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # SIG_IGN may be inherited, and would make the kernel reap
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if parent := options.get("die-with-parent"):
        _prctl(_PR_SET_PDEATHSIG, KILL_SIGNAL)
        if os.getppid() != int(parent):
            return _NOT_EXECUTED  # it was gone before the prctl call
    leaf = LeafCgroup.create(options["cgroup"]) if "cgroup" in options else None
    report = int(options["report"]) if "report" in options else None
    if report is not None:
        os.set_inheritable(report, False)
    try:
        shim = Shim(argv, options.get("status"), leaf, float(options.get("linger", 0)))
    except OSError as error:
        _send_report(report, f"error {error.errno or errno.EIO}")
        if leaf is not None:
            leaf.remove()
        return _NOT_EXECUTED
    _send_report(report, shim.report)
    shim.supervise()
    return _exit_like(shim.returncode)


def _parse(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options and the engine's argv. argparse would double the start-up time."""
    end = arguments.index("--")
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments[:end])
    return {name: value for name, _, value in pairs}, arguments[end + 1 :]


def _exec_engine(argv: list[str], parent: int, leaf: LeafCgroup | None, error_pipe: int) -> None:
    """In the child: become the engine, leader of its own session and group. Never returns."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_NOT_EXECUTED)
        if leaf is not None:
            leaf.enter()
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and children inherit that
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        os.execvp(argv[0], argv)  # noqa: S606 - intentionally without a shell
    except OSError as error:
        os.write(error_pipe, str(error.errno or errno.EIO).encode())
    finally:
        os._exit(_NOT_EXECUTED)


def _next_signal(timeout_s: float | None) -> int | None:
    if timeout_s is None:
        return signal.sigwait(_AWAITED)
    info = signal.sigtimedwait(_AWAITED, timeout_s)
    return info.si_signo if info is not None else None


def _signal_group(leader: int, signum: int) -> None:
    try:
        os.killpg(leader, signum)
    except OSError as error:
        _log(f"the group {leader} can't be signalled: {error}")


def _exit_like(returncode: int) -> int:
    """Die from the engine's signal, without a core dump; otherwise return its exit code."""
    if returncode >= 0:
        return returncode
    import resource  # imported here: it is rarely needed and costs start-up time

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -returncode != signal.SIGKILL:
        signal.signal(-returncode, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (-returncode,))
    os.kill(os.getpid(), -returncode)
    return 128 - returncode


def _prctl(option: int, value: int) -> None:
    """Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _send_report(report: int | None, line: str) -> None:
    if report is None:
        return
    try:
        os.write(report, f"{line}\n".encode())
    except BrokenPipeError:
        _log("the report pipe is closed")  # Berth died during our start; the status file has the same facts
    finally:
        os.close(report)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        _log(f"can't write {path}: {error}")


def _log(message: str) -> None:
    """Write a line to the engine's log, where our stderr goes."""
    try:
        os.write(2, f"shim {os.getpid()}: {message}\n".encode())
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
