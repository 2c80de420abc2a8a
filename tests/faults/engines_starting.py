"""Engines that don't start, start late, or find another program on their port."""

from __future__ import annotations

import socket
import sys
import threading
import time

from tests import fake_engine
from tests.berth_process import is_free
from tests.faults.environment import NUM_PORTS, FaultEnvironment, eventually
from tests.faults.journal import Outcome
from tests.faults.scenario import Scenario

_FAILURE_CODE = "instance_failed"


def killed_before_it_listens(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--slow-start", "60"), wait_s=0):
        waiting = env.start_requests("one", 5)
        env.wait_for_status("one", "health_checking")
        env.wait_until("one", lambda record: record["in_flight"] >= 0 and record["pid"] is not None)
        time.sleep(0.3)
        env.engine("one").kill()
        failed = env.wait_for_status("one", "failed")
        assert failed["error"]["class"] == "crashed", failed["error"]
        assert failed["error"]["signal"] == "SIGKILL", failed["error"]
        for reply in waiting():
            assert (reply.status, reply.code) == (503, _FAILURE_CODE), str(reply)
            assert "SIGKILL" in reply.message, reply.message
        later = env.complete("one")
        assert later.outcome is Outcome.REFUSED, str(later)


def exits_at_once_with_a_reason(env: FaultEnvironment) -> None:
    flags = ("--fail-with", "CUDA out of memory. Tried to allocate 2.00 GiB", "--exit-code", "3")
    with env.instance("one", fake_engine.command(*flags)):
        error = env.wait_for_status("one", "failed")["error"]
        assert (error["class"], error["exit_code"]) == ("out_of_memory", 3), error


def exits_0_before_it_listens(env: FaultEnvironment) -> None:
    with env.instance("one", [sys.executable, "-S", "-c", "print('done')"]):
        error = env.wait_for_status("one", "failed")["error"]
        assert (error["class"], error["exit_code"]) == ("crashed", 0), error
        assert "done" in "".join(error["log_tail"]), error


def is_not_a_program(env: FaultEnvironment) -> None:
    for program in ("/nowhere/to/be/found", "/etc/passwd"):
        made = env.create("one", [program, "{port}"], wait_s=20)
        assert made.outcome is Outcome.REFUSED, str(made)
        assert program in made.message, made.message
        env.ask("DELETE", "/instances/one?force=true")  # it may not exist


def is_killed_at_each_moment_of_its_start(env: FaultEnvironment) -> None:
    """From before its interpreter runs until after it is ready, in steps of 15 ms."""
    for step in range(12):
        with env.instance("one", fake_engine.command("--slow-start", "0.05"), wait_s=0):
            env.wait_until("one", lambda record: record["pid"] is not None or record["status"] == "failed")
            waiting = env.start_requests("one", 2)
            time.sleep(step * 0.015)
            pid = env.record("one")["pid"]
            if pid is not None:
                env.engine("one").kill()
            for reply in waiting():
                assert reply.outcome is not Outcome.LOST, str(reply)
            env.wait_for_status("one", "failed", "running")


def binds_late(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--slow-start", "3"), wait_s=0):
        for reply in env.start_requests("one", 40)():
            assert reply.outcome is Outcome.ANSWERED, str(reply)


def is_deleted_while_it_starts(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--slow-start", "60"), wait_s=0):
        waiting = env.start_requests("one", 5)
        env.wait_for_status("one", "health_checking")
        time.sleep(0.3)
        gone = env.control("POST", "/instances/one/stop")
        assert gone.status == 200, str(gone)
        for reply in waiting():
            assert reply.status in (409, 503), str(reply)


def prints_megabytes_while_it_starts(env: FaultEnvironment) -> None:
    """120 MB of lines, then 40 MB without a line end: the log and Berth's memory stay bounded."""
    script = (
        "import os, sys\n"
        "for _ in range(1200): os.write(1, b'x' * 99 * 1010 + b'\\n')\n"
        "for _ in range(400): os.write(2, b'y' * 100_000)\n"
        "os.execv(sys.executable, [sys.executable, '-S', *sys.argv[1:]])"
    )
    command = [sys.executable, "-S", "-c", script, *fake_engine.command()[2:]]
    with env.memory_bounded(40), env.instance("one", command):
        reply = env.complete("one")
        assert reply.outcome is Outcome.ANSWERED, str(reply)
        logs = env.directory / "logs"
        eventually(
            "no more than 32 MB of log are kept",
            lambda: sum(path.stat().st_size for path in logs.iterdir() if "one" in path.name) < 32_000_000,
        )
        tail = env.ask("GET", "/instances/one/logs?tail=5")
        assert tail.outcome is Outcome.ANSWERED, str(tail)[:300]
        assert len(tail.body) < 100_000, len(tail.body)


def finds_its_port_taken(env: FaultEnvironment) -> None:
    """By a program that answers health probes."""
    first = env.berth.base_port
    wanted = next(port for port in range(first, first + NUM_PORTS) if is_free(port))
    with _Squatter(wanted), env.instance("one", fake_engine.command()):
        record = env.wait_for_status("one", "running")
        assert record["port"] != wanted
        assert env.complete("one").outcome is Outcome.ANSWERED


def has_its_port_stolen_while_it_starts(env: FaultEnvironment) -> None:
    """Between Berth's bind test and the engine's bind, by a program that answers health probes."""
    with env.instance("one", fake_engine.command("--slow-start", "1.5"), wait_s=0):
        port = env.wait_until("one", lambda record: record["pid"] is not None)["port"]
        with _Squatter(port) as squatter:
            record = env.wait_until(
                "one", lambda record: record["status"] in ("running", "failed") and record["port"] != port
            )
            assert record["status"] == "running", record["error"]
            reply = env.complete("one")
            assert reply.outcome is Outcome.ANSWERED, str(reply)
            assert b"token0" in reply.body, str(reply)
            assert not squatter.got_completion, "a request went to the other program"


def all_ports_are_taken(env: FaultEnvironment) -> None:
    first = env.berth.base_port
    squatters = [_Squatter(port) for port in range(first, first + NUM_PORTS) if is_free(port)]
    try:
        made = env.create("one", fake_engine.command())
        assert made.outcome is Outcome.REFUSED, str(made)
        assert "port" in made.message, made.message
    finally:
        for squatter in squatters:
            squatter.close()
        env.ask("DELETE", "/instances/one?force=true")
    with env.instance("one", fake_engine.command()):
        assert env.complete("one").outcome is Outcome.ANSWERED


class _Squatter:
    """Listens on an engine's port and answers every request with 200."""

    def __init__(self, port: int) -> None:
        self.got_completion = False
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self._listener.settimeout(0.1)
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> _Squatter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._is_closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(1)
                try:
                    self.got_completion |= b"completions" in connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
                except OSError:
                    continue


SCENARIO = Scenario(
    "an engine that starts",
    cases=(
        killed_before_it_listens,
        exits_at_once_with_a_reason,
        exits_0_before_it_listens,
        is_not_a_program,
        is_killed_at_each_moment_of_its_start,
        binds_late,
        is_deleted_while_it_starts,
        prints_megabytes_while_it_starts,
        finds_its_port_taken,
        has_its_port_stolen_while_it_starts,
        all_ports_are_taken,
    ),
)
