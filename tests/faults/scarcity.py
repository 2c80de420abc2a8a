"""No file descriptors left, and clocks that jump."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests import fake_engine
from tests.faults.environment import NEIGHBOUR, Harbour, Skipped, eventually
from tests.faults.journal import Fate, Ledger
from tests.faults.scenario import Scene

_FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
_HOUR_S = 3600


def no_descriptors_left(folder: Path, ledger: Ledger, _seed: int) -> None:
    """Suddenly there are none to spare: who is served goes on, new ones are served again afterwards."""
    with Harbour(folder, ledger) as harbour:
        streams = harbour.asking(NEIGHBOUR, 10, stream=True, max_tokens=400)
        harbour.until(NEIGHBOUR, lambda record: record["in_flight"] >= 10)
        with _descriptors(harbour.process, 0), contextlib.ExitStack() as waiting:
            harbour.stop_neighbour()
            for _ in range(50):
                with contextlib.suppress(OSError):
                    waiting.enter_context(harbour.connect(1))
            time.sleep(2)
            busy = harbour.process.cpu_percent(1.0)
            assert busy < 90, f"Berth spins, at {busy:.0f} % of a CPU"
        for reply in streams():
            assert reply.is_done, str(reply)
        harbour.slowest_s = 0.0  # it had to wait
        harbour.start_neighbour()
        assert harbour.complete(NEIGHBOUR).fate is Fate.ANSWERED
        assert not (problems := harbour.settle()), problems


def few_descriptors_left(folder: Path, ledger: Ledger, _seed: int) -> None:
    """Enough for a request, not for an engine's start: it is refused clearly, and works again later."""
    with Harbour(folder, ledger) as harbour:
        for spare in (2, 4, 6, 8, 12):
            with _descriptors(harbour.process, spare):
                made = harbour.create("one", fake_engine.command(), wait_s=20)
                assert made.fate in (Fate.ANSWERED, Fate.REFUSED), str(made)
                assert made.status != 500, str(made)
                assert "error in Berth" not in str(made), str(made)
            harbour.control("DELETE", "/instances/one?force=true")
            with harbour.instance("one", fake_engine.command()):
                assert harbour.complete("one").fate is Fate.ANSWERED
        assert not (problems := harbour.settle()), problems


def the_clock_jumps(folder: Path, ledger: Ledger, _seed: int) -> None:
    """The wall clock, by hours, forth and back: nothing expires, times out or waits for it."""
    clock, settings = _fake_clock(folder)
    with (
        Harbour(folder, ledger, {"LD_PRELOAD": ""}, **settings) as harbour,
        harbour.instance("one", fake_engine.command("--chunk-delay", "0.05"), timeout=600),
    ):
        pid = harbour.record("one")["pid"]
        for hours in (24, -24, 10_000, -10_000, 0):
            streams = harbour.asking("one", 5, stream=True, max_tokens=60)
            time.sleep(0.5)
            _set(clock, f"{hours * _HOUR_S:+d}")
            wanted_s = hours * _HOUR_S
            eventually("the clock has jumped", lambda s=wanted_s: abs(_berths_offset_s(harbour) - s) < 60, 10)
            with harbour.instance("two", fake_engine.command("--slow-start", "0.5")):
                assert harbour.complete("two").fate is Fate.ANSWERED
            for reply in streams():
                assert reply.is_done, str(reply)
                assert reply.seconds < 15, reply.seconds
            time.sleep(1)
            record = harbour.record("one")
            assert (record["status"], record["pid"], record["restarts"]) == ("running", pid, 0), record


def expiry_keeps_to_its_own_clock(folder: Path, ledger: Ledger, _seed: int) -> None:
    """An idle instance goes after its seconds, whatever the wall clock says meanwhile."""
    clock, settings = _fake_clock(folder)
    with Harbour(folder, ledger, {"LD_PRELOAD": ""}, **settings) as harbour:
        for hours in (24, -24):
            with harbour.instance("one", fake_engine.command(), timeout=6):
                begun = time.monotonic()  # it is idle since a moment ago
                _set(clock, f"{hours * _HOUR_S:+d}")
                harbour.until_status("one", "stopped", timeout_s=12)
                idle_s = time.monotonic() - begun
                assert idle_s > 4, f"it has expired after {idle_s:.1f} s, too early"
                _set(clock, "+0")


def _fake_clock(folder: Path) -> tuple[Path, dict[str, str]]:
    """The file that tells how far the wall clock is off, and what makes a process heed it. Raises Skipped."""
    found = glob.glob(_FAKETIME)
    if not found:
        raise Skipped("libfaketime isn't installed")
    folder.mkdir(parents=True)
    clock = folder / "clock"
    clock.write_text("+0")
    return clock, {
        "LD_PRELOAD": found[0],
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def _set(clock: Path, offset: str) -> None:
    new = clock.with_suffix(".new")
    new.write_text(offset)
    os.replace(new, clock)
    time.sleep(1.2)  # it is looked at once a second


def _berths_offset_s(harbour: Harbour) -> float:
    """How far Berth's clock is off: by the time of a transition that it writes down."""
    with harbour.instance("clock", fake_engine.command()):
        created = harbour.record("clock")["created_at"]
    assert isinstance(created, int | float), created
    return created - time.time()


@contextlib.contextmanager
def _descriptors(process: psutil.Process, spare: int) -> Iterator[None]:
    """Only so many more than are open now."""
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    limit, free = 0, -1  # of the numbers below the limit
    while free < spare:
        free += limit not in taken
        limit += 1
    process.rlimit(psutil.RLIMIT_NOFILE, (limit - 1, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


SCENE = Scene(
    "scarcity",
    alone=(no_descriptors_left, few_descriptors_left, the_clock_jumps, expiry_keeps_to_its_own_clock),
)
