"""Engines that run and then end, hang, or won't end."""

from __future__ import annotations

import random
import signal
import time

import psutil

from tests import fake_engine
from tests.faults import faulty_engine as rogue_engine
from tests.faults.environment import Harbour
from tests.faults.journal import Fate, Reply
from tests.faults.scenario import Scene

_RUNS_AGAIN_S = 20.0
_RESTART_LIMIT = 2


def killed_when_nobody_asks(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command()):
        old = harbour.engine("one")
        old.kill()
        new = _until_another_runs(harbour, "one", old)
        assert new["restarts"] == 1, new
        assert harbour.complete("one").fate is Fate.ANSWERED


def killed_while_it_answers(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command()):
        old = harbour.engine("one")
        waiting = harbour.asking("one", 10, delay=20)
        harbour.until("one", lambda record: record["in_flight"] == 10)
        old.kill()
        for reply in waiting():
            assert reply.status == 502, str(reply)
            assert reply.seconds < 10
        _until_another_runs(harbour, "one", old)
        assert harbour.complete("one").fate is Fate.ANSWERED


def killed_in_the_middle_of_streams(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--chunk-delay", "0.05")):
        old = harbour.engine("one")
        waiting = harbour.asking("one", 20, stream=True, max_tokens=500)
        harbour.until("one", lambda record: record["in_flight"] == 20)
        time.sleep(0.3)
        old.kill()
        for reply in waiting():
            _check_cut(reply)
        _until_another_runs(harbour, "one", old)
        assert harbour.complete("one", stream=True).is_done


def killed_again_and_again_under_load(harbour: Harbour) -> None:
    dice = random.Random(1)
    with harbour.instance("one", fake_engine.command("--chunk-delay", "0.02")):
        for _ in range(6):
            waiting = harbour.asking("one", 12, stream=True, max_tokens=30)
            plain = harbour.asking("one", 6, delay=0.2)
            time.sleep(dice.uniform(0, 0.7))
            pid = harbour.record("one")["pid"]
            if pid is not None:
                _kill(pid)
            for reply in (*waiting(), *plain()):
                assert reply.fate is not Fate.LOST, str(reply)
                assert reply.is_done or not reply.is_event_stream or reply.broken, str(reply)
            harbour.until_status("one", "failed", "running")
            harbour.control("POST", "/instances/one/start")
            harbour.until_status("one", "running")


def exits_0_while_it_runs_and_whenever_it_is_started(harbour: Harbour) -> None:
    command = fake_engine.command("--die-after", "0.3", "--exit-code", "0")
    with harbour.instance("one", command, wait_s=0):
        failed = harbour.until(
            "one",
            lambda record: record["status"] == "failed" and record["restarts"] == _RESTART_LIMIT,
            _RUNS_AGAIN_S,
        )
        assert (failed["error"]["class"], failed["error"]["exit_code"]) == ("crashed", 0), failed["error"]
        time.sleep(1)
        assert harbour.record("one")["status"] == "failed", "it is started for ever"
        assert harbour.complete("one").fate is Fate.REFUSED


def wedged_idle_and_wedged_with_streams(harbour: Harbour) -> None:
    """Stopped (SIGSTOP): the port is open, connections are taken, nothing is answered."""
    command = fake_engine.command("--chunk-delay", "0.05")
    with harbour.instance("idle", command), harbour.instance("busy", command):
        engines = [harbour.engine("idle"), harbour.engine("busy")]
        streams = harbour.asking("busy", 5, stream=True, max_tokens=100_000, timeout_s=60)
        harbour.until("busy", lambda record: record["in_flight"] == 5)
        time.sleep(0.2)
        for engine in engines:
            engine.suspend()
        answers = harbour.asking("idle", 5, timeout_s=60)
        for reply in streams():
            _check_cut(reply)
        for reply in answers():
            assert reply.status in (502, 503), str(reply)
        for name, engine in zip(("idle", "busy"), engines, strict=True):
            _until_another_runs(harbour, name, engine)
            assert harbour.complete(name).fate is Fate.ANSWERED


def deleted_while_it_is_wedged(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--daemonize")):
        waiting = harbour.asking("one", 3, delay=20)
        harbour.until("one", lambda record: record["in_flight"] == 3)
        engine = harbour.engine("one")
        engine.suspend()
        began = time.monotonic()
        gone = harbour.control("POST", "/instances/one/stop?force=true")
        assert gone.status == 200, str(gone)
        assert time.monotonic() - began < 10
        for reply in waiting():
            assert reply.fate is Fate.REFUSED, str(reply)
        assert not engine.is_running()


def slow(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--chunk-delay", "0.5")):
        plain = harbour.asking("one", 10, delay=4)
        streams = harbour.asking("one", 10, stream=True, max_tokens=8)
        for reply in plain():
            assert reply.fate is Fate.ANSWERED, str(reply)
        for reply in streams():
            assert reply.is_done, str(reply)
            assert reply.first_byte_s < 2, "the stream was held back"


def prints_megabytes_while_it_runs(harbour: Harbour) -> None:
    with harbour.memory_bounded(40), harbour.instance("one", fake_engine.command("--print-mb", "150")):
        for reply in harbour.asking("one", 10, stream=True, max_tokens=50)():
            assert reply.is_done, str(reply)


def ignores_sigterm(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--ignore-term")):
        engine = harbour.engine("one")
        stopped = harbour.control("POST", "/instances/one/stop")
        assert stopped.status == 200, str(stopped)
        assert 0.9 < stopped.seconds < 8, stopped.seconds
        assert not engine.is_running()


def forks_daemons(harbour: Harbour) -> None:
    """In sessions of their own, ignoring SIGTERM; ended with the engine, by whatever it ends."""
    command = fake_engine.command("--daemonize", "--grandchild", "--ignore-term")
    strangers = harbour.strangers
    for end in (_stop, _kill_engine):
        with harbour.instance("one", command):
            assert len(strangers()) >= 4, strangers()
            end(harbour)
    with harbour.instance("one", command):
        pass
    assert not strangers(), strangers()


def forks_all_the_time(harbour: Harbour) -> None:
    """Whoever kills one after the other never comes to an end."""
    for end in (_stop, _kill_engine):
        with harbour.instance("one", rogue_engine.command("--fork-storm")):
            time.sleep(0.5)
            end(harbour)


def leaves_somebody_at_its_port(harbour: Harbour) -> None:
    """A daemon that inherited the listening socket: the next on that port must be alone there."""
    with harbour.instance("one", rogue_engine.command("--hold-port")):
        for _ in range(3):
            again = harbour.control("POST", "/instances/one/restart?wait=20")
            assert again.fate is Fate.ANSWERED, str(again)
            harbour.until_status("one", "running")
            assert harbour.ask("GET", "/proxy/one/echo").fate is Fate.ANSWERED


def loses_its_shim(harbour: Harbour) -> None:
    """What watches over it on Berth's behalf is killed."""
    with harbour.instance("one", fake_engine.command("--daemonize")):
        engine = harbour.engine("one")
        shim = engine.parent()
        assert shim is not None and "shim" in " ".join(shim.cmdline()), shim
        streams = harbour.asking("one", 3, stream=True, max_tokens=1000)
        harbour.until("one", lambda record: record["in_flight"] == 3)
        shim.kill()
        for reply in streams():
            assert reply.fate is Fate.CUT, str(reply)
        _until_another_runs(harbour, "one", engine)
        assert harbour.complete("one").fate is Fate.ANSWERED


def ends_by_every_signal(harbour: Harbour) -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGHUP, signal.SIGINT):
        with harbour.instance("one", fake_engine.command()):
            engine = harbour.engine("one")
            engine.send_signal(number)
            seen = harbour.until("one", lambda record, pid=engine.pid: record["pid"] != pid)
            assert seen["error"] is None or seen["error"]["signal"] == number.name, seen["error"]


def _stop(harbour: Harbour) -> None:
    stopped = harbour.control("POST", "/instances/one/stop")
    assert stopped.status == 200, str(stopped)


def _kill_engine(harbour: Harbour) -> None:
    engine = harbour.engine("one")
    engine.kill()
    harbour.until("one", lambda record: record["pid"] != engine.pid)


def _kill(pid: int) -> None:
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return  # it was faster


def _check_cut(reply: Reply) -> None:
    assert reply.fate is Fate.CUT, str(reply)
    assert b"token0" in reply.body, str(reply)
    assert not reply.is_done, str(reply)
    assert reply.error.get("type") == "upstream_error", f"no reason is given: {reply}"


def _until_another_runs(harbour: Harbour, name: str, old: psutil.Process) -> dict[str, object]:
    return harbour.until(
        name,
        lambda record: record["status"] == "running" and record["pid"] != old.pid,
        _RUNS_AGAIN_S,
    )


SCENE = Scene(
    "an engine that runs",
    cases=(
        killed_when_nobody_asks,
        killed_while_it_answers,
        killed_in_the_middle_of_streams,
        killed_again_and_again_under_load,
        exits_0_while_it_runs_and_whenever_it_is_started,
        wedged_idle_and_wedged_with_streams,
        deleted_while_it_is_wedged,
        slow,
        prints_megabytes_while_it_runs,
        ignores_sigterm,
        forks_daemons,
        forks_all_the_time,
        leaves_somebody_at_its_port,
        loses_its_shim,
        ends_by_every_signal,
    ),
    settings={"RESTART_LIMIT": str(_RESTART_LIMIT)},
)
