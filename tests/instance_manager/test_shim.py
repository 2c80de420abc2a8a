"""The shim on its own, run as a script with real process trees."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from instance_manager.process import shim
from tests.instance_manager.conftest import MARK

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim needs Linux")

SHIM = [sys.executable, "-I", "-S", shim.__file__]
PYTHON = [sys.executable, "-S", "-c"]

# A tree that ignores SIGTERM: a leader, a child in another session, and a daemon (forked twice).
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
there, here = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.write(here, b"x")
    time.sleep(600)
os.read(there, 1)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
os.write(1, b"ready\\n")
time.sleep(600)
"""

# Fifty processes that fork and exit in a loop: the target of a signal may already be gone.
RESTLESS = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
until = time.monotonic() + 30
for _ in range(50):
    if os.fork() == 0:
        os.setsid()
        while time.monotonic() < until:
            if os.fork():
                os._exit(0)
            time.sleep(0.02)
        os._exit(0)
os.write(1, b"ready\\n")
time.sleep(600)
"""


class Run:
    """A shim started with `argv`, and its status file."""

    def __init__(self, status_path: Path, mark: str, argv: list[str], *options: str) -> None:
        self.status_path = status_path
        self.process = subprocess.Popen(
            [*SHIM, f"--status={status_path}", *options, "--", *argv],
            env={**os.environ, MARK: mark, shim.TOKEN_VARIABLE: mark},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        while not self.status_path.exists():  # the engine may be ready before the file is written
            time.sleep(0.01)

    def wait(self) -> int:
        with self.process:
            return self.process.wait(30)

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.status_path.read_text())
        return status


@pytest.fixture
def start(tmp_path: Path, mark: str) -> Iterator[Any]:
    """`start(argv, *options)` returns a Run; `mark` checks that no process of its tree is left."""
    runs: list[Run] = []

    def make(argv: list[str], *options: str, status_path: Path = tmp_path / "run.json") -> Run:
        runs.append(Run(status_path, mark, argv, *options))
        return runs[-1]

    yield make
    for run in runs:
        run.process.send_signal(shim.KILL_SIGNAL)  # does nothing if it has ended
        run.wait()


@pytest.mark.parametrize(
    ("code", "returncode"), [("exit 0", 0), ("exit 3", 3), ("kill -SEGV $$", -11), ("kill -KILL $$", -9)]
)
def test_the_shim_exits_like_the_engine_and_records_how(start: Any, code: str, returncode: int) -> None:
    began = time.time()
    run = start(["/bin/sh", "-c", code])
    assert run.wait() == returncode
    status = run.status
    assert status["returncode"] == returncode
    assert began - 1 < status["started_at"] <= status["ended_at"] <= status["emptied_at"] < time.time() + 1
    assert 0 <= status["ran_s"] < 30
    assert status["shim_pid"] == run.process.pid != status["engine_pid"]
    assert status["token"]
    assert run.status_path.stat().st_mode & 0o777 == 0o600
    assert list(run.status_path.parent.iterdir()) == [run.status_path]  # no draft is left


def test_the_tree_of_an_engine_that_exits_by_itself_is_killed(start: Any) -> None:
    run = start([*PYTHON, STUBBORN.replace('os.write(1, b"ready\\n")', "os._exit(7)")])
    assert run.wait() == 7


def test_with_linger_what_an_engine_leaves_may_end_by_itself(start: Any, tmp_path: Path) -> None:
    cleaned_up = tmp_path / "cleaned_up"
    code = f'setsid /bin/sh -c "sleep 0.2; touch {cleaned_up}" & exit 7'
    assert start(["/bin/sh", "-c", code], "--linger=20").wait() == 7
    assert cleaned_up.exists()
    began = time.monotonic()
    stubborn = [*PYTHON, STUBBORN.replace('os.write(1, b"ready\\n")', "os._exit(7)")]
    assert start(stubborn, "--linger=0.2", status_path=tmp_path / "other.json").wait() == 7
    assert time.monotonic() - began < 15


def test_the_kill_signal_ends_daemons_and_other_sessions(start: Any) -> None:
    run = start([*PYTHON, STUBBORN])
    run.until_ready()
    below = psutil.Process(run.process.pid).children(recursive=True)
    assert len(below) == 3
    assert len({os.getsid(process.pid) for process in below}) == 3
    run.process.send_signal(signal.SIGTERM)  # which all ignore
    time.sleep(0.1)
    assert all(process.is_running() for process in below)
    run.process.send_signal(shim.KILL_SIGNAL)
    assert run.wait() == -signal.SIGKILL
    assert not any(process.is_running() for process in below)


def test_processes_that_fork_constantly_do_not_escape(start: Any) -> None:
    run = start([*PYTHON, RESTLESS])
    run.until_ready()
    run.process.send_signal(shim.KILL_SIGNAL)
    began = time.monotonic()
    assert run.wait() == -signal.SIGKILL
    assert time.monotonic() - began < 15


def test_a_process_whose_first_thread_has_exited_is_alive_and_killed(start: Any) -> None:
    code = "import ctypes, os, threading, time; os.setsid(); "
    code += "threading.Thread(target=time.sleep, args=(600,)).start(); "
    code += "os.write(1, b'ready\\n'); ctypes.CDLL(None).pthread_exit(0)"
    run = start(["/bin/sh", "-c", f'{sys.executable} -S -c "{code}" & exec sleep 600'])
    run.until_ready()
    (headless,) = psutil.Process(run.status["engine_pid"]).children()
    while headless.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    stat = shim.read_stat(headless.pid)
    assert stat is not None
    assert stat.is_alive
    run.process.send_signal(shim.KILL_SIGNAL)
    assert run.wait() == -signal.SIGKILL


def test_after_sigterm_the_rest_of_the_tree_gets_time(start: Any, tmp_path: Path) -> None:
    cleaned_up = tmp_path / "cleaned_up"
    worker = f"trap 'sleep 0.3; touch {cleaned_up}; exit' TERM; echo ready; while :; do sleep 0.05; done"
    run = start(["/bin/sh", "-c", f'setsid /bin/sh -c "{worker}" & exec sleep 600'])
    run.until_ready()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == -signal.SIGTERM
    assert cleaned_up.exists()


def test_the_engine_of_a_killed_shim_is_killed(start: Any) -> None:
    run = start(["/bin/sh", "-c", "echo ready; exec sleep 600"])
    run.until_ready()
    engine = psutil.Process(run.status["engine_pid"])
    run.process.kill()
    engine.wait(10)
    assert run.wait() == -signal.SIGKILL
    assert (run.status["ended_at"], run.status["emptied_at"]) == (None, None)


def test_with_die_with_parent_the_tree_ends_with_the_parent(tmp_path: Path, mark: str) -> None:
    status = tmp_path / "run.json"
    argv = [*SHIM, f"--status={status}", "--die-with-parent=PID", "--", *PYTHON, STUBBORN]
    code = "import os, subprocess; argv = [arg.replace('PID', str(os.getpid())) for arg in ARGV]; "
    code += "subprocess.Popen(argv, start_new_session=True).wait()"
    parent = subprocess.Popen(
        [*PYTHON, code.replace("ARGV", repr(argv))], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        processes = psutil.Process(parent.pid).children(recursive=True)
        assert len(processes) == 4  # the shim and three processes
        parent.kill()
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    assert json.loads(status.read_text())["emptied_at"] is not None


def test_a_parent_that_is_already_gone_is_noticed(start: Any) -> None:
    run = start(["/bin/sh", "-c", "echo never"], f"--die-with-parent={os.getppid()}")
    assert run.wait() == 127
    assert not run.status_path.exists()


def test_an_execution_error_is_reported(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    for program, number in ((str(tmp_path / "missing"), errno.ENOENT), (str(plain), errno.EACCES)):
        read_end, write_end = os.pipe()
        child = subprocess.Popen([*SHIM, f"--report={write_end}", "--", program], pass_fds=(write_end,))
        os.close(write_end)
        with open(read_end) as report:
            assert report.read() == f"error {number}\n"
        assert child.wait(10) == 127


def test_an_unwritable_status_file_stops_nothing(start: Any, tmp_path: Path) -> None:
    run = start(["/bin/sh", "-c", "exit 5"], status_path=tmp_path / "no" / "such" / "folder.json")
    assert run.wait() == 5


def test_the_engine_leads_its_own_session_and_inherits_no_descriptors(start: Any) -> None:
    script = "import os, signal, sys; print(os.getsid(0) == os.getpgid(0) == os.getpid(), "
    script += "signal.pthread_sigmask(0, ()), os.listdir('/proc/self/fd'), open('/proc/self/status').read())"
    run = start([*PYTHON, script])
    assert run.process.stdout is not None
    output = run.process.stdout.read().decode()
    assert run.wait() == 0
    assert output.startswith("True set() ['0', '1', '2', '3'] ")  # 3 is the listed directory itself
    assert "SigBlk:\t0000000000000000" in output


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A control group (version 2) that the test may change."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    points = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    directory = Path(points[0] if points else "/nowhere") / f"test-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be created here: {error}")
    if not (directory / "cgroup.kill").exists():
        directory.rmdir()
        pytest.skip("this kernel can't kill a control group")
    yield str(directory)
    directory.rmdir()


def test_a_delegated_cgroup_holds_the_tree_and_is_removed(start: Any, cgroup: str) -> None:
    run = start([*PYTHON, STUBBORN], f"--cgroup={cgroup}")
    run.until_ready()
    leaf = Path(run.status["cgroup"])
    assert leaf.parent == Path(cgroup)
    below = psutil.Process(run.process.pid).children(recursive=True)
    assert {int(pid) for pid in (leaf / "cgroup.procs").read_text().split()} == {
        process.pid for process in below
    }
    run.process.send_signal(shim.KILL_SIGNAL)
    assert run.wait() == -signal.SIGKILL
    assert not leaf.exists()


def test_an_unusable_cgroup_stops_nothing(start: Any, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        run = start(["/bin/sh", "-c", "exit 4"], f"--cgroup={directory}")
        assert run.wait() == 4
        assert run.status["cgroup"] is None
    assert list(tmp_path.iterdir()) == [run.status_path]


def test_the_shim_needs_little_memory(start: Any) -> None:
    run = start(["/bin/sh", "-c", "echo ready; exec sleep 600"])
    run.until_ready()
    assert psutil.Process(run.process.pid).memory_info().rss < 20 * 1024 * 1024
    run.process.send_signal(shim.KILL_SIGNAL)
    run.wait()


def test_a_signal_never_reaches_another_process_with_the_same_pid(start: Any) -> None:
    run = start(["/bin/sh", "-c", "echo ready; exec sleep 600"])
    run.until_ready()
    pid, ticks = run.status["engine_pid"], run.status["engine_start_ticks"]
    assert not shim.send((pid, ticks - 1), signal.SIGKILL)
    assert psutil.Process(pid).is_running()
    assert shim.send((pid, ticks), signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not shim.send((pid, ticks), signal.SIGKILL)
