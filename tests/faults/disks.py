"""Full and read-only disks for logs and for state: serving continues."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests import fake_engine
from tests.faults import faulty_engine
from tests.faults.environment import BYSTANDER, FaultEnvironment, small_disk
from tests.faults.journal import Journal, Outcome
from tests.faults.scenario import Scenario


def full_for_logs(directory: Path, journal: Journal, _seed: int) -> None:
    with small_disk(directory / "logs", "1m") as disk, FaultEnvironment(directory, journal) as env:
        with _filled(disk):
            _serve_and_start(env)
            verbose = env.create("verbose", fake_engine.command())  # it exits when it can't print
            assert "is full" in verbose.message, str(verbose)
            env.control("DELETE", "/instances/verbose?force=true")
        _serve_and_start(env)
        assert not (problems := env.settle()), problems


def filled_by_an_engine(directory: Path, journal: Journal, _seed: int) -> None:
    """An engine's log fills the disk on which another engine writes its own."""
    with small_disk(directory / "logs", "4m"), FaultEnvironment(directory, journal) as env:
        with env.instance("verbose", fake_engine.command("--print-mb", "30")):
            assert env.complete("verbose", stream=True).is_done
            _serve_and_start(env)
        assert not (problems := env.settle()), problems


def full_for_state(directory: Path, journal: Journal, _seed: int) -> None:
    with small_disk(directory / "state", "4m") as disk, FaultEnvironment(directory, journal) as env:
        with _filled(disk):
            _serve_and_start(env)
        _serve_and_start(env)
        assert not (problems := env.settle()), problems


def read_only_for_logs(directory: Path, journal: Journal, _seed: int) -> None:
    with small_disk(directory / "logs", "4m") as disk, FaultEnvironment(directory, journal) as env:
        env.create("another", faulty_engine.command())
        with _read_only(disk):
            _serve(env)
            made = env.create("one", fake_engine.command())
            assert made.outcome is Outcome.REFUSED, str(made)
            assert "Read-only" in made.message, made.message
            assert "an error in Berth" not in made.message, made.message
            env.control("DELETE", "/instances/one?force=true")
            _delete_another(env)
            _serve(env)
        _serve_and_start(env)
        assert not (problems := env.settle()), problems


def read_only_for_state(directory: Path, journal: Journal, _seed: int) -> None:
    with small_disk(directory / "state", "4m") as disk, FaultEnvironment(directory, journal) as env:
        env.create("another", faulty_engine.command())
        with _read_only(disk):
            _serve(env)
            with env.instance("one", fake_engine.command()):
                _check_running_or_explained(env)
            _delete_another(env)
            _serve(env)
        _serve_and_start(env)
        assert not (problems := env.settle()), problems


def _serve(env: FaultEnvironment) -> None:
    for is_stream in (False, True):
        reply = env.complete(BYSTANDER, stream=is_stream)
        assert reply.outcome is Outcome.ANSWERED, str(reply)


def _serve_and_start(env: FaultEnvironment) -> None:
    """The bystander is served, and an engine without log output can be started, restarted and stopped."""
    _serve(env)
    with env.instance("one", faulty_engine.command()):
        record = env.record("one")
        assert record["status"] == "running", record["error"]
        assert env.complete("one").outcome is Outcome.ANSWERED
        again = env.control("POST", "/instances/one/restart?wait=20")
        assert again.outcome is Outcome.ANSWERED, str(again)
        assert env.complete("one").outcome is Outcome.ANSWERED
    _serve(env)


def _delete_another(env: FaultEnvironment) -> None:
    """An instance whose files on the disk can't be deleted."""
    gone = env.control("DELETE", "/instances/another")
    assert gone.outcome is Outcome.ANSWERED, str(gone)


def _check_running_or_explained(env: FaultEnvironment) -> None:
    """It runs, or its error gives the reason."""
    record = env.record("one")
    if record["status"] == "running":
        assert env.complete("one").outcome is Outcome.ANSWERED
        return
    message = record["error"]["message"]
    assert "Read-only" in message, message
    assert "an error in Berth" not in message, message


@contextlib.contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """No further byte fits, as if another program had filled the disk."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def _read_only(disk: Path) -> Iterator[None]:
    """Read-only, as after a disk error. By a bind mount on top, since open files prevent a remount."""
    for options in (["--bind", str(disk)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(disk)], check=True)  # noqa: S607
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # noqa: S607


SCENARIO = Scenario(
    "disks",
    isolated=(full_for_logs, filled_by_an_engine, full_for_state, read_only_for_logs, read_only_for_state),
)
