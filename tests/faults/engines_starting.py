"""Engines that don't come up, come up late, or find somebody else at their port."""

from __future__ import annotations

import socket
import sys
import threading
import time

from tests import fake_engine
from tests.berth_process import is_free
from tests.faults.environment import NUM_PORTS, Harbour, eventually
from tests.faults.journal import Fate
from tests.faults.scenario import Scene

_CODE_OF_FAILURE = "instance_failed"


def killed_before_it_listens(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--slow-start", "60"), wait_s=0):
        waiting = harbour.asking("one", 5)
        harbour.until_status("one", "health_checking")
        harbour.until("one", lambda record: record["in_flight"] >= 0 and record["pid"] is not None)
        time.sleep(0.3)
        harbour.engine("one").kill()
        failed = harbour.until_status("one", "failed")
        assert failed["error"]["class"] == "crashed", failed["error"]
        assert failed["error"]["signal"] == "SIGKILL", failed["error"]
        for reply in waiting():
            assert (reply.status, reply.code) == (503, _CODE_OF_FAILURE), str(reply)
            assert "SIGKILL" in reply.message, reply.message
        later = harbour.complete("one")
        assert later.fate is Fate.REFUSED, str(later)


def exits_at_once_with_a_reason(harbour: Harbour) -> None:
    flags = ("--fail-with", "CUDA out of memory. Tried to allocate 2.00 GiB", "--exit-code", "3")
    with harbour.instance("one", fake_engine.command(*flags)):
        error = harbour.until_status("one", "failed")["error"]
        assert (error["class"], error["exit_code"]) == ("out_of_memory", 3), error


def exits_0_before_it_listens(harbour: Harbour) -> None:
    with harbour.instance("one", [sys.executable, "-S", "-c", "print('done')"]):
        error = harbour.until_status("one", "failed")["error"]
        assert (error["class"], error["exit_code"]) == ("crashed", 0), error
        assert "done" in "".join(error["log_tail"]), error


def is_no_program(harbour: Harbour) -> None:
    for program in ("/nowhere/to/be/found", "/etc/passwd"):
        made = harbour.create("one", [program, "{port}"], wait_s=20)
        assert made.fate is Fate.REFUSED, str(made)
        assert program in made.message, made.message
        harbour.ask("DELETE", "/instances/one?force=true")  # there may be none


def is_killed_in_each_moment_of_its_start(harbour: Harbour) -> None:
    """From before its interpreter runs until after it is ready, in steps of 15 ms."""
    for step in range(12):
        with harbour.instance("one", fake_engine.command("--slow-start", "0.05"), wait_s=0):
            harbour.until("one", lambda record: record["pid"] is not None or record["status"] == "failed")
            waiting = harbour.asking("one", 2)
            time.sleep(step * 0.015)
            pid = harbour.record("one")["pid"]
            if pid is not None:
                harbour.engine("one").kill()
            for reply in waiting():
                assert reply.fate is not Fate.LOST, str(reply)
            harbour.until_status("one", "failed", "running")


def binds_late(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--slow-start", "3"), wait_s=0):
        for reply in harbour.asking("one", 40)():
            assert reply.fate is Fate.ANSWERED, str(reply)


def is_deleted_while_it_starts(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--slow-start", "60"), wait_s=0):
        waiting = harbour.asking("one", 5)
        harbour.until_status("one", "health_checking")
        time.sleep(0.3)
        gone = harbour.control("POST", "/instances/one/stop")
        assert gone.status == 200, str(gone)
        for reply in waiting():
            assert reply.status in (409, 503), str(reply)


def prints_megabytes_while_it_starts(harbour: Harbour) -> None:
    """120 MB of lines, and 40 MB without the end of a line: a log keeps to its size, and so does Berth."""
    script = (
        "import os, sys\n"
        "for _ in range(1200): os.write(1, b'x' * 99 * 1010 + b'\\n')\n"
        "for _ in range(400): os.write(2, b'y' * 100_000)\n"
        "os.execv(sys.executable, [sys.executable, '-S', *sys.argv[1:]])"
    )
    command = [sys.executable, "-S", "-c", script, *fake_engine.command()[2:]]
    with harbour.memory_bounded(40), harbour.instance("one", command):
        reply = harbour.complete("one")
        assert reply.fate is Fate.ANSWERED, str(reply)
        logs = harbour.folder / "logs"
        eventually(
            "no more than 32 MB of log are kept",
            lambda: sum(path.stat().st_size for path in logs.iterdir() if "one" in path.name) < 32_000_000,
        )
        tail = harbour.ask("GET", "/instances/one/logs?tail=5")
        assert tail.fate is Fate.ANSWERED, str(tail)[:300]
        assert len(tail.body) < 100_000, len(tail.body)


def finds_its_port_taken(harbour: Harbour) -> None:
    """By somebody who answers health probes in its place."""
    first = harbour.berth.base_port
    wanted = next(port for port in range(first, first + NUM_PORTS) if is_free(port))
    with _Squatter(wanted), harbour.instance("one", fake_engine.command()):
        record = harbour.until_status("one", "running")
        assert record["port"] != wanted
        assert harbour.complete("one").fate is Fate.ANSWERED


def has_its_port_stolen_while_it_starts(harbour: Harbour) -> None:
    """Between Berth's look and the engine's bind; the thief says that all is well."""
    with harbour.instance("one", fake_engine.command("--slow-start", "1.5"), wait_s=0):
        port = harbour.until("one", lambda record: record["pid"] is not None)["port"]
        with _Squatter(port) as thief:
            record = harbour.until(
                "one", lambda record: record["status"] in ("running", "failed") and record["port"] != port
            )
            assert record["status"] == "running", record["error"]
            reply = harbour.complete("one")
            assert reply.fate is Fate.ANSWERED, str(reply)
            assert b"token0" in reply.body, str(reply)
            assert not thief.got_completion, "a request went to the thief"


def all_ports_are_taken(harbour: Harbour) -> None:
    first = harbour.berth.base_port
    squatters = [_Squatter(port) for port in range(first, first + NUM_PORTS) if is_free(port)]
    try:
        made = harbour.create("one", fake_engine.command())
        assert made.fate is Fate.REFUSED, str(made)
        assert "port" in made.message, made.message
    finally:
        for squatter in squatters:
            squatter.close()
        harbour.ask("DELETE", "/instances/one?force=true")
    with harbour.instance("one", fake_engine.command()):
        assert harbour.complete("one").fate is Fate.ANSWERED


class _Squatter:
    """Listens where an engine should, and answers 200 to everybody."""

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


SCENE = Scene(
    "an engine that starts",
    cases=(
        killed_before_it_listens,
        exits_at_once_with_a_reason,
        exits_0_before_it_listens,
        is_no_program,
        is_killed_in_each_moment_of_its_start,
        binds_late,
        is_deleted_while_it_starts,
        prints_megabytes_while_it_starts,
        finds_its_port_taken,
        has_its_port_stolen_while_it_starts,
        all_ports_are_taken,
    ),
)
