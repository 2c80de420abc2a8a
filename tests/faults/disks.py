"""Disks that are full or read-only, for logs and for state: what is served goes on being served."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests import fake_engine
from tests.faults import faulty_engine as rogue_engine
from tests.faults.environment import NEIGHBOUR, Harbour, small_disk
from tests.faults.journal import Fate, Ledger
from tests.faults.scenario import Scene


def full_for_logs(folder: Path, ledger: Ledger, _seed: int) -> None:
    with small_disk(folder / "logs", "1m") as disk, Harbour(folder, ledger) as harbour:
        with _filled(disk):
            _serve_and_start(harbour)
            talker = harbour.create("talker", fake_engine.command())  # it dies of what it can't print
            assert "is full" in talker.message, str(talker)
            harbour.control("DELETE", "/instances/talker?force=true")
        _serve_and_start(harbour)
        assert not (problems := harbour.settle()), problems


def filled_by_an_engine(folder: Path, ledger: Ledger, _seed: int) -> None:
    """Its log is longer than the disk, while another engine on it writes its own."""
    with small_disk(folder / "logs", "4m"), Harbour(folder, ledger) as harbour:
        with harbour.instance("talker", fake_engine.command("--print-mb", "30")):
            assert harbour.complete("talker", stream=True).is_done
            _serve_and_start(harbour)
        assert not (problems := harbour.settle()), problems


def full_for_state(folder: Path, ledger: Ledger, _seed: int) -> None:
    with small_disk(folder / "state", "4m") as disk, Harbour(folder, ledger) as harbour:
        with _filled(disk):
            _serve_and_start(harbour)
        _serve_and_start(harbour)
        assert not (problems := harbour.settle()), problems


def read_only_for_logs(folder: Path, ledger: Ledger, _seed: int) -> None:
    with small_disk(folder / "logs", "4m") as disk, Harbour(folder, ledger) as harbour:
        harbour.create("another", rogue_engine.command())
        with _read_only(disk):
            _serve(harbour)
            made = harbour.create("one", fake_engine.command())
            assert made.fate is Fate.REFUSED, str(made)
            assert "Read-only" in made.message, made.message
            assert "an error in Berth" not in made.message, made.message
            harbour.control("DELETE", "/instances/one?force=true")
            _delete_another(harbour)
            _serve(harbour)
        _serve_and_start(harbour)
        assert not (problems := harbour.settle()), problems


def read_only_for_state(folder: Path, ledger: Ledger, _seed: int) -> None:
    with small_disk(folder / "state", "4m") as disk, Harbour(folder, ledger) as harbour:
        harbour.create("another", rogue_engine.command())
        with _read_only(disk):
            _serve(harbour)
            with harbour.instance("one", fake_engine.command()):
                _is_clear(harbour)
            _delete_another(harbour)
            _serve(harbour)
        _serve_and_start(harbour)
        assert not (problems := harbour.settle()), problems


def _serve(harbour: Harbour) -> None:
    for is_stream in (False, True):
        reply = harbour.complete(NEIGHBOUR, stream=is_stream)
        assert reply.fate is Fate.ANSWERED, str(reply)


def _serve_and_start(harbour: Harbour) -> None:
    """Others are served, and an engine that can be silent is started, serves, is restarted and stopped."""
    _serve(harbour)
    with harbour.instance("one", rogue_engine.command()):
        record = harbour.record("one")
        assert record["status"] == "running", record["error"]
        assert harbour.complete("one").fate is Fate.ANSWERED
        again = harbour.control("POST", "/instances/one/restart?wait=20")
        assert again.fate is Fate.ANSWERED, str(again)
        assert harbour.complete("one").fate is Fate.ANSWERED
    _serve(harbour)


def _delete_another(harbour: Harbour) -> None:
    """One that has files on the disk, which can't be deleted."""
    gone = harbour.control("DELETE", "/instances/another")
    assert gone.fate is Fate.ANSWERED, str(gone)


def _is_clear(harbour: Harbour) -> None:
    """It runs, or it says why it doesn't."""
    record = harbour.record("one")
    if record["status"] == "running":
        assert harbour.complete("one").fate is Fate.ANSWERED
        return
    message = record["error"]["message"]
    assert "Read-only" in message, message
    assert "an error in Berth" not in message, message


@contextlib.contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """Not a byte more fits; as when somebody else has filled it."""
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
    """As after an error of the disk: it can be read. By a mount on top, as open files forbid another."""
    for options in (["--bind", str(disk)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(disk)], check=True)  # noqa: S607
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # noqa: S607


SCENE = Scene(
    "disks",
    alone=(full_for_logs, filled_by_an_engine, full_for_state, read_only_for_logs, read_only_for_state),
)
