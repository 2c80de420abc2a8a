"""Engines under their shims as the manager handles them: spawned, adopted, ended. Real processes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from instance_manager.process import supervised
from instance_manager.process.cgroups import delegated_cgroup
from instance_manager.process.process_tree import (
    ProcessId,
    RunStatus,
    find_by_token,
    kill_until_gone,
    read_status,
    wait_for_exit,
)
from instance_manager.process.supervised import SupervisedProcess, can_supervise
from tests.instance_manager.conftest import LOOPS, MARK, ManagerFactory, fake, marked, running
from tests.instance_manager.test_shim import PYTHON, STUBBORN

pytestmark = pytest.mark.skipif(not can_supervise(), reason="the shim needs Linux")

ROOT = Path(__file__).resolve().parents[2]
Spawn = Callable[..., Coroutine[Any, Any, SupervisedProcess]]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def token() -> str:
    return secrets.token_hex(16)


@pytest.fixture
async def spawn(tmp_path: Path, mark: str, token: str) -> AsyncIterator[Spawn]:
    """`await spawn(argv)`: an engine with its output in tmp_path/log; its tree is ended after the test."""
    spawned: list[SupervisedProcess] = []

    async def make(argv: list[str], path: Path | None = None, **options: Any) -> SupervisedProcess:
        env = {**os.environ, MARK: mark, "BERTH_INSTANCE_TOKEN": token}
        output = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            path = path or tmp_path / "run" / "engine.json"
            spawned.append(await SupervisedProcess.spawn(argv, env, None, output, path, **options))
        finally:
            os.close(output)
        return spawned[-1]

    yield make
    for process in spawned:
        await process.end(0)


async def until_logged(log: Path, text: str = "ready") -> None:
    async with asyncio.timeout(30):
        while text not in log.read_text():  # noqa: ASYNC110 - a file has no event to await
            await asyncio.sleep(0.01)


def status_of(tmp_path: Path) -> RunStatus:
    status = read_status(tmp_path / "run" / "engine.json")
    assert status is not None
    return status


def are_alive(status: RunStatus) -> bool:
    """Whether shim and engine are the processes that were recorded."""
    return status.shim.is_alive and status.engine.is_alive


async def test_a_tree_that_ignores_sigterm_is_ended(spawn: Spawn, tmp_path: Path, token: str) -> None:
    process = await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    status = status_of(tmp_path)
    assert are_alive(status)
    assert (status.engine_pid, status.token) == (process.pid, token)
    assert os.getpgid(process.pid) == process.pid
    assert len(find_by_token([token])[token]) == 4  # the shim and three processes
    assert await process.end(0.2)
    assert process.exited.result() == -signal.SIGKILL
    assert find_by_token([token]) == {}
    assert await process.end(0.2)  # a second end does nothing


@pytest.mark.parametrize(("code", "returncode"), [("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV)])
async def test_the_return_code_of_an_engine_that_exits_by_itself(
    spawn: Spawn, tmp_path: Path, code: str, returncode: int
) -> None:
    process = await spawn(["/bin/sh", "-c", code])
    assert await process.exited == returncode
    assert await process.end(0)
    assert status_of(tmp_path).returncode == returncode
    assert not are_alive(status_of(tmp_path))


async def test_engines_run_even_if_the_status_file_can_not_be_written(
    spawn: Spawn, tmp_path: Path, token: str
) -> None:
    (tmp_path / "file").touch()
    process = await spawn(["/bin/sh", "-c", "exit 6"], path=tmp_path / "file" / "engine.json")
    assert await process.exited == 6
    assert await process.end(0)
    process = await spawn([*PYTHON, STUBBORN], path=tmp_path / "file" / "engine.json")
    await until_logged(tmp_path / "log")
    assert await process.end(0.1)
    assert find_by_token([token]) == {}


async def test_an_engine_that_obeys_sigterm_ends_within_its_grace_time(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn(["/bin/sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done"])
    await until_logged(tmp_path / "log")
    assert await process.end(30)
    assert process.exited.result() == 0


async def test_a_program_that_can_not_be_run_is_an_oserror_and_leaves_no_process(
    spawn: Spawn, mark: str, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/program"):
        await spawn(["/no/such/program"])
    with pytest.raises(PermissionError):
        await spawn([str(tmp_path)])
    assert marked(mark) == []


async def test_a_shim_that_can_not_start_is_an_oserror_too(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "_SHIM", "/no/such/shim.py")
    with pytest.raises(OSError, match="the shim has ended before"):
        await spawn(["/bin/true"])


async def test_a_cancelled_start_leaves_no_process(spawn: Spawn, mark: str) -> None:
    for delay_s in (0.0, 0.01, 0.02, 0.03, 0.05):
        starting = asyncio.create_task(spawn([*PYTHON, STUBBORN]))
        await asyncio.sleep(delay_s)
        starting.cancel()
        await asyncio.wait((starting,))
        if not starting.cancelled():
            assert await starting.result().end(0)
    assert marked(mark) == []


async def test_no_process_is_left_when_the_shim_is_killed(spawn: Spawn, tmp_path: Path, token: str) -> None:
    process = await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    os.kill(status_of(tmp_path).shim_pid, signal.SIGKILL)
    assert await process.exited == -signal.SIGKILL
    assert len(find_by_token([token])[token]) == 2  # the kernel kills only the engine itself
    assert await process.end(0)
    assert find_by_token([token]) == {}


async def test_the_engines_exit_is_noticed_before_the_tree_is_empty(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    shim = status_of(tmp_path).shim
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await process.exited == -signal.SIGKILL
        await wait_for_exit(shim)


async def test_a_stopped_shim_is_continued_and_ends_its_tree(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    os.kill(status_of(tmp_path).shim_pid, signal.SIGSTOP)
    began = time.monotonic()
    assert await process.end(0)
    assert time.monotonic() - began < 5


async def test_a_shim_that_ignores_signals_is_killed_with_its_tree(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    monkeypatch.setattr(supervised, "_KILL_DEADLINE_S", 0.2)
    monkeypatch.setattr(process, "_signal_shim", lambda signum: None)  # as if it ignored all signals
    assert await process.end(0)


async def test_killing_without_waiting(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    process.kill_now()
    assert await process.exited == -signal.SIGKILL
    await wait_for_exit(status_of(tmp_path).shim)


async def test_it_works_without_pidfd(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    process = await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    assert await process.end(0)
    assert process.exited.result() == -signal.SIGKILL
    assert not process.exited.cancelled()
    assert find_by_token([token]) == {}


# Adoption of what a killed manager left.

MANAGER = """
import asyncio, os, sys
from pathlib import Path
from instance_manager.process.supervised import SupervisedProcess

async def main():
    log = os.open(sys.argv[1] + "/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    argv = sys.argv[2:]
    await SupervisedProcess.spawn(argv, os.environ, None, log, Path(sys.argv[1], "run", "engine.json"))
    os.write(1, b"spawned\\n")
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def orphaned(tmp_path: Path, mark: str, token: str) -> Callable[..., RunStatus]:
    """`orphaned(argv)`: an engine whose manager was killed by SIGKILL."""

    def make(argv: list[str]) -> RunStatus:
        env = {**os.environ, MARK: mark, "BERTH_INSTANCE_TOKEN": token}
        command = [sys.executable, "-c", MANAGER, str(tmp_path), *argv]
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as manager:
            assert manager.stdout is not None
            assert manager.stdout.readline() == b"spawned\n"
            manager.kill()
        return status_of(tmp_path)

    return make


async def test_an_engine_survives_its_manager_and_another_process_ends_it(
    orphaned: Callable[..., RunStatus], tmp_path: Path, token: str
) -> None:
    status = await asyncio.to_thread(orphaned, [*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    assert are_alive(status)
    assert len(find_by_token([token, "other"])[token]) == 4
    process = SupervisedProcess.adopt(status, tmp_path / "run" / "engine.json")
    assert process.pid == status.engine_pid
    assert process.start_time == pytest.approx(psutil.Process(process.pid).create_time())
    await asyncio.sleep(0.1)
    assert not process.exited.done()
    assert await process.end(0.2)
    assert process.exited.result() == -signal.SIGKILL
    assert find_by_token([token]) == {}


async def test_the_exit_code_of_an_adopted_engine_is_known(
    orphaned: Callable[..., RunStatus], tmp_path: Path
) -> None:
    wait = f"while ! [ -e {tmp_path}/go ]; do sleep 0.02; done; exit 3"
    status = await asyncio.to_thread(orphaned, ["/bin/sh", "-c", wait])
    process = SupervisedProcess.adopt(status, tmp_path / "run" / "engine.json")
    (tmp_path / "go").touch()
    assert await process.exited == 3
    assert await process.end(0)
    late = SupervisedProcess.adopt(status, tmp_path / "run" / "engine.json")  # it has ended before
    assert await late.exited == 3
    assert await late.end(1)


async def test_no_process_is_left_when_an_adopted_engines_shim_is_killed(
    orphaned: Callable[..., RunStatus], tmp_path: Path, token: str
) -> None:
    status = await asyncio.to_thread(orphaned, [*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    process = SupervisedProcess.adopt(status, tmp_path / "run" / "engine.json")
    os.kill(status.shim_pid, signal.SIGKILL)
    assert await process.exited == -signal.SIGKILL
    assert await process.end(0)
    assert find_by_token([token]) == {}


async def test_orphans_without_a_status_file_are_ended_by_their_token(
    orphaned: Callable[..., RunStatus], tmp_path: Path, token: str
) -> None:
    await asyncio.to_thread(orphaned, [*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    assert await kill_until_gone(token, None, 10)
    assert find_by_token([token]) == {}


async def test_only_the_recorded_processes_count_as_alive(spawn: Spawn, tmp_path: Path, token: str) -> None:
    await spawn([*PYTHON, STUBBORN])
    await until_logged(tmp_path / "log")
    status = status_of(tmp_path)
    assert are_alive(status)
    for other in (
        replace(status, shim_start_ticks=status.shim_start_ticks - 1),
        replace(status, engine_start_ticks=status.engine_start_ticks + 1),
        replace(status, engine_pid=status.shim_pid),
    ):
        assert not are_alive(other)
    reused_pid = ProcessId(status.engine_pid, status.engine_start_ticks - 1)
    assert not reused_pid.is_alive
    assert await kill_until_gone("", reused_pid, 1)  # finds and kills no process
    assert are_alive(status_of(tmp_path))
    await wait_for_exit(reused_pid)


def test_an_unreadable_status_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    assert read_status(path) is None
    for text in ("", "{", "[]", "3", '{"token": "x"}'):
        path.write_text(text)
        assert read_status(path) is None
    status = RunStatus("t", "b", 1, 2, 3, 4, None, 5.0, None, None, None, None)
    path.write_text(json.dumps(asdict(status) | {"of_a_later_version": 1}))
    assert read_status(path) == status


# Through the manager.


async def test_a_daemon_is_ended_with_its_engine(managing: ManagerFactory, mark: str) -> None:
    async with managing(stop_grace_s=0.3) as manager:
        instance = await running(manager, fake("--daemonize", "--grandchild"))
        assert len(marked(mark)) == 4
        status = read_status(manager.config.status_path(instance.instance_id))
        assert status is not None
        assert status.engine_pid == instance.pid
        await manager.stop(instance.instance_id)
        assert marked(mark) == []
        await manager.delete(instance.instance_id)
        assert not manager.config.status_path(instance.instance_id).exists()


async def test_without_a_shim_the_process_group_is_ended(managing: ManagerFactory, mark: str) -> None:
    async with managing(stop_grace_s=0.3, use_shim=False) as manager:
        instance = await running(manager, fake("--ignore-term", "--grandchild"))
        assert len(marked(mark)) == 2
        await manager.stop(instance.instance_id)
        assert marked(mark) == []


async def test_twenty_engines_start_and_end_at_once(tmp_path: Path, mark: str) -> None:
    async def spawn_one(number: int) -> SupervisedProcess:
        env = {**os.environ, MARK: mark, "BERTH_INSTANCE_TOKEN": f"{mark}{number}"}
        output = os.open(tmp_path / f"{number}.log", os.O_WRONLY | os.O_CREAT)
        try:
            path = tmp_path / f"{number}.json"
            return await SupervisedProcess.spawn([*PYTHON, STUBBORN], env, None, output, path)
        finally:
            os.close(output)

    processes = await asyncio.gather(*(spawn_one(number) for number in range(20)))
    for number in range(20):
        await until_logged(tmp_path / f"{number}.log")
    assert len(marked(mark)) == 80
    assert await asyncio.gather(*(process.end(0.2) for process in processes)) == [True] * 20
    assert marked(mark) == []


# Control groups.


def test_a_cgroup_is_used_only_if_it_is_delegated(tmp_path: Path) -> None:
    own, mounts = tmp_path / "own", tmp_path / "mounts"
    group = tmp_path / "fs" / "berth.service"
    group.mkdir(parents=True)
    own.write_text("4:memory:/x\n0::/system.slice/berth.service\n")
    mounts.write_text(f"30 1 0:26 /system.slice {tmp_path}/fs rw - cgroup2 cgroup2 rw\n")
    assert delegated_cgroup(own, mounts) is None  # no writable cgroup.procs
    (group / "cgroup.procs").touch()
    if os.geteuid() == 0:
        assert delegated_cgroup(own, mounts) is None  # root may write anywhere
        try:
            os.setxattr(group, "user.delegate", b"1")
        except OSError as error:
            pytest.skip(f"no extended attributes here: {error}")
    assert delegated_cgroup(own, mounts) == str(group)
    own.write_text("0::/outside\n")
    assert delegated_cgroup(own, mounts) is None
    own.write_text("4:memory:/x\n")
    assert delegated_cgroup(own, mounts) is None
    assert delegated_cgroup(tmp_path / "none", mounts) is None
