"""Running engines that exit, hang, or can't be stopped."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from typing import Any

import psutil

from tests import fake_engine
from tests.faults import faulty_engine
from tests.faults.environment import FaultEnvironment
from tests.faults.journal import Outcome, Reply
from tests.faults.scenario import Scenario

_RUNS_AGAIN_S = 20.0
_RESTART_LIMIT = 2


def killed_while_idle(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command()):
        old = env.engine("one")
        old.kill()
        new = _wait_for_another_process(env, "one", old)
        assert new["restarts"] == 1, new
        assert env.complete("one").outcome is Outcome.ANSWERED


def killed_while_it_answers(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command()):
        old = env.engine("one")
        waiting = env.start_requests("one", 10, delay=20)
        env.wait_until("one", lambda record: record["in_flight"] == 10)
        old.kill()
        for reply in waiting():
            assert reply.status == 502, str(reply)
            assert reply.seconds < 10
        _wait_for_another_process(env, "one", old)
        assert env.complete("one").outcome is Outcome.ANSWERED


def killed_during_streams(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--chunk-delay", "0.05")):
        old = env.engine("one")
        waiting = env.start_requests("one", 20, stream=True, max_tokens=500)
        env.wait_until("one", lambda record: record["in_flight"] == 20)
        time.sleep(0.3)
        old.kill()
        for reply in waiting():
            _check_cut(reply)
        _wait_for_another_process(env, "one", old)
        assert env.complete("one", stream=True).is_done


def killed_repeatedly_under_load(env: FaultEnvironment) -> None:
    dice = random.Random(1)
    with env.instance("one", fake_engine.command("--chunk-delay", "0.02")):
        for _ in range(6):
            waiting = env.start_requests("one", 12, stream=True, max_tokens=30)
            plain = env.start_requests("one", 6, delay=0.2)
            time.sleep(dice.uniform(0, 0.7))
            pid = env.record("one")["pid"]
            if pid is not None:
                _kill(pid)
            for reply in (*waiting(), *plain()):
                assert reply.outcome is not Outcome.LOST, str(reply)
                assert reply.is_done or not reply.is_event_stream or reply.broken, str(reply)
            env.wait_for_status("one", "failed", "running")
            env.control("POST", "/instances/one/start")
            env.wait_for_status("one", "running")


def exits_0_after_every_start(env: FaultEnvironment) -> None:
    command = fake_engine.command("--die-after", "0.3", "--exit-code", "0")
    with env.instance("one", command, wait_s=0):
        failed = env.wait_until(
            "one",
            lambda record: record["status"] == "failed" and record["restarts"] == _RESTART_LIMIT,
            _RUNS_AGAIN_S,
        )
        assert (failed["error"]["class"], failed["error"]["exit_code"]) == ("crashed", 0), failed["error"]
        time.sleep(1)
        assert env.record("one")["status"] == "failed", "it is restarted without end"
        assert env.complete("one").outcome is Outcome.REFUSED


def hangs_idle_and_with_streams(env: FaultEnvironment) -> None:
    """Stopped by SIGSTOP: the port is open and accepts connections, but nothing is answered."""
    command = fake_engine.command("--chunk-delay", "0.05")
    with env.instance("idle", command), env.instance("busy", command):
        engines = [env.engine("idle"), env.engine("busy")]
        streams = env.start_requests("busy", 5, stream=True, max_tokens=100_000, timeout_s=60)
        env.wait_until("busy", lambda record: record["in_flight"] == 5)
        time.sleep(0.2)
        for engine in engines:
            engine.suspend()
        answers = env.start_requests("idle", 5, timeout_s=60)
        for reply in streams():
            _check_cut(reply)
        for reply in answers():
            assert reply.status in (502, 503), str(reply)
        for name, engine in zip(("idle", "busy"), engines, strict=True):
            _wait_for_another_process(env, name, engine)
            assert env.complete(name).outcome is Outcome.ANSWERED


def stopped_while_it_hangs(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--daemonize")):
        waiting = env.start_requests("one", 3, delay=20)
        env.wait_until("one", lambda record: record["in_flight"] == 3)
        engine = env.engine("one")
        engine.suspend()
        began = time.monotonic()
        gone = env.control("POST", "/instances/one/stop?force=true")
        assert gone.status == 200, str(gone)
        assert time.monotonic() - began < 10
        for reply in waiting():
            assert reply.outcome is Outcome.REFUSED, str(reply)
        assert not engine.is_running()


def is_slow(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--chunk-delay", "0.5")):
        plain = env.start_requests("one", 10, delay=4)
        streams = env.start_requests("one", 10, stream=True, max_tokens=8)
        for reply in plain():
            assert reply.outcome is Outcome.ANSWERED, str(reply)
        for reply in streams():
            assert reply.is_done, str(reply)
            assert reply.first_byte_s < 2, "the stream was held back"


def prints_megabytes_while_it_runs(env: FaultEnvironment) -> None:
    with env.memory_bounded(40), env.instance("one", fake_engine.command("--print-mb", "150")):
        for reply in env.start_requests("one", 10, stream=True, max_tokens=50)():
            assert reply.is_done, str(reply)


def ignores_sigterm(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--ignore-term")):
        engine = env.engine("one")
        stopped = env.control("POST", "/instances/one/stop")
        assert stopped.status == 200, str(stopped)
        assert 0.9 < stopped.seconds < 8, stopped.seconds
        assert not engine.is_running()


def forks_daemons(env: FaultEnvironment) -> None:
    """In their own sessions, ignoring SIGTERM; ended with the engine, however that ends."""
    command = fake_engine.command("--daemonize", "--grandchild", "--ignore-term")
    for end in (_stop, _kill_engine):
        with env.instance("one", command):
            assert len(env.unexpected_processes()) >= 4, env.unexpected_processes()
            end(env)
    with env.instance("one", command):
        pass
    assert not env.unexpected_processes(), env.unexpected_processes()


def forks_constantly(env: FaultEnvironment) -> None:
    """Killing the processes one by one would never finish."""
    for end in (_stop, _kill_engine):
        with env.instance("one", faulty_engine.command("--fork-storm")):
            time.sleep(0.5)
            end(env)


def leaves_a_process_on_its_port(env: FaultEnvironment) -> None:
    """A daemon inherits the listening socket; the next engine on that port must be alone there."""
    with env.instance("one", faulty_engine.command("--hold-port")):
        for _ in range(3):
            again = env.control("POST", "/instances/one/restart?wait=20")
            assert again.outcome is Outcome.ANSWERED, str(again)
            env.wait_for_status("one", "running")
            assert env.ask("GET", "/proxy/one/echo").outcome is Outcome.ANSWERED


def loses_its_shim(env: FaultEnvironment) -> None:
    """The shim that supervises it is killed."""
    with env.instance("one", fake_engine.command("--daemonize")):
        engine = env.engine("one")
        shim = engine.parent()
        assert shim is not None and "shim" in " ".join(shim.cmdline()), shim
        streams = env.start_requests("one", 3, stream=True, max_tokens=1000)
        env.wait_until("one", lambda record: record["in_flight"] == 3)
        shim.kill()
        for reply in streams():
            assert reply.outcome is Outcome.CUT, str(reply)
        _wait_for_another_process(env, "one", engine)
        assert env.complete("one").outcome is Outcome.ANSWERED


def _has_another_pid(pid: int, record: dict[str, Any]) -> bool:
    return bool(record["pid"] != pid)


def exits_by_signals(env: FaultEnvironment) -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGHUP, signal.SIGINT):
        with env.instance("one", fake_engine.command()):
            engine = env.engine("one")
            engine.send_signal(number)
            seen = env.wait_until("one", partial(_has_another_pid, engine.pid))
            assert seen["error"] is None or seen["error"]["signal"] == number.name, seen["error"]


def _stop(env: FaultEnvironment) -> None:
    stopped = env.control("POST", "/instances/one/stop")
    assert stopped.status == 200, str(stopped)


def _kill_engine(env: FaultEnvironment) -> None:
    engine = env.engine("one")
    engine.kill()
    env.wait_until("one", lambda record: record["pid"] != engine.pid)


def _kill(pid: int) -> None:
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return  # it has already exited


def _check_cut(reply: Reply) -> None:
    assert reply.outcome is Outcome.CUT, str(reply)
    assert b"token0" in reply.body, str(reply)
    assert not reply.is_done, str(reply)
    assert reply.error.get("type") == "upstream_error", f"no reason is given: {reply}"


def _wait_for_another_process(env: FaultEnvironment, name: str, old: psutil.Process) -> dict[str, object]:
    return env.wait_until(
        name,
        lambda record: record["status"] == "running" and record["pid"] != old.pid,
        _RUNS_AGAIN_S,
    )


SCENARIO = Scenario(
    "an engine that runs",
    cases=(
        killed_while_idle,
        killed_while_it_answers,
        killed_during_streams,
        killed_repeatedly_under_load,
        exits_0_after_every_start,
        hangs_idle_and_with_streams,
        stopped_while_it_hangs,
        is_slow,
        prints_megabytes_while_it_runs,
        ignores_sigterm,
        forks_daemons,
        forks_constantly,
        leaves_a_process_on_its_port,
        loses_its_shim,
        exits_by_signals,
    ),
    settings={"RESTART_LIMIT": str(_RESTART_LIMIT)},
)
