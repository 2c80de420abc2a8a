"""No free file descriptors, and clocks that jump."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from tests import fake_engine
from tests.faults.environment import BYSTANDER, FaultEnvironment, Skipped, eventually
from tests.faults.journal import Journal, Outcome
from tests.faults.scenario import Scenario

_FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
_HOUR_S = 3600


def no_descriptors_left(directory: Path, journal: Journal, _seed: int) -> None:
    """All descriptors are used up: running requests continue, and new ones are served again afterwards."""
    with FaultEnvironment(directory, journal) as env:
        streams = env.start_requests(BYSTANDER, 10, stream=True, max_tokens=400)
        env.wait_until(BYSTANDER, lambda record: record["in_flight"] >= 10)
        with _descriptors(env.process, 0), contextlib.ExitStack() as waiting:
            env.stop_bystander()
            for _ in range(50):
                with contextlib.suppress(OSError):
                    waiting.enter_context(env.connect(1))
            time.sleep(2)
            busy = env.process.cpu_percent(1.0)
            assert busy < 90, f"Berth spins at {busy:.0f} % of a CPU"
        for reply in streams():
            assert reply.is_done, str(reply)
        env.slowest_s = 0.0  # it had to wait
        env.start_bystander()
        assert env.complete(BYSTANDER).outcome is Outcome.ANSWERED
        assert not (problems := env.settle()), problems


def few_descriptors_left(directory: Path, journal: Journal, _seed: int) -> None:
    """Enough for a request but not for a start: it is refused with a clear error, and works later."""
    with FaultEnvironment(directory, journal) as env:
        for spare in (2, 4, 6, 8, 12):
            with _descriptors(env.process, spare):
                made = env.create("one", fake_engine.command(), wait_s=20)
                assert made.outcome in (Outcome.ANSWERED, Outcome.REFUSED), str(made)
                assert made.status != 500, str(made)
                assert "error in Berth" not in str(made), str(made)
            env.control("DELETE", "/instances/one?force=true")
            with env.instance("one", fake_engine.command()):
                assert env.complete("one").outcome is Outcome.ANSWERED
        assert not (problems := env.settle()), problems


def the_clock_jumps(directory: Path, journal: Journal, _seed: int) -> None:
    """The wall clock jumps by hours in both directions: nothing expires, times out or waits."""
    clock, settings = _fake_clock(directory)
    with (
        FaultEnvironment(directory, journal, {"LD_PRELOAD": ""}, **settings) as env,
        env.instance("one", fake_engine.command("--chunk-delay", "0.05"), timeout=600),
    ):
        pid = env.record("one")["pid"]
        for hours in (24, -24, 10_000, -10_000, 0):
            streams = env.start_requests("one", 5, stream=True, max_tokens=60)
            time.sleep(0.5)
            _set(clock, f"{hours * _HOUR_S:+d}")
            eventually("the clock has jumped", partial(_has_offset, env, hours * _HOUR_S), 10)
            with env.instance("two", fake_engine.command("--slow-start", "0.5")):
                assert env.complete("two").outcome is Outcome.ANSWERED
            for reply in streams():
                assert reply.is_done, str(reply)
                assert reply.seconds < 15, reply.seconds
            time.sleep(1)
            record = env.record("one")
            assert (record["status"], record["pid"], record["restarts"]) == ("running", pid, 0), record


def expiry_ignores_the_wall_clock(directory: Path, journal: Journal, _seed: int) -> None:
    """An idle instance expires after its timeout, whatever the wall clock does."""
    clock, settings = _fake_clock(directory)
    with FaultEnvironment(directory, journal, {"LD_PRELOAD": ""}, **settings) as env:
        for hours in (24, -24):
            with env.instance("one", fake_engine.command(), timeout=6):
                began = time.monotonic()  # it has just become idle
                _set(clock, f"{hours * _HOUR_S:+d}")
                env.wait_for_status("one", "stopped", timeout_s=12)
                idle_s = time.monotonic() - began
                assert idle_s > 4, f"it has expired after {idle_s:.1f} s, too early"
                _set(clock, "+0")


def _fake_clock(directory: Path) -> tuple[Path, dict[str, str]]:
    """The file with the offset of the wall clock, and the variables that apply it. Raises Skipped."""
    found = glob.glob(_FAKETIME)
    if not found:
        raise Skipped("libfaketime isn't installed")
    directory.mkdir(parents=True)
    clock = directory / "clock"
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
    time.sleep(1.2)  # it is read once a second


def _has_offset(env: FaultEnvironment, seconds: float) -> bool:
    return abs(_berths_offset_s(env) - seconds) < 60


def _berths_offset_s(env: FaultEnvironment) -> float:
    """Offset of Berth's clock, by the creation time that it records."""
    with env.instance("clock", fake_engine.command()):
        created = env.record("clock")["created_at"]
    assert isinstance(created, int | float), created
    return created - time.time()


@contextlib.contextmanager
def _descriptors(process: psutil.Process, spare: int) -> Iterator[None]:
    """Allow only `spare` more descriptors than are open now."""
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    limit, free = 0, -1  # free numbers below the limit
    while free < spare:
        free += limit not in taken
        limit += 1
    process.rlimit(psutil.RLIMIT_NOFILE, (limit - 1, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


SCENARIO = Scenario(
    "scarcity",
    isolated=(no_descriptors_left, few_descriptors_left, the_clock_jumps, expiry_ignores_the_wall_clock),
)
