"""Attacks are measured and judged correctly: a known stall, and verdicts that can be checked by hand."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest

from tests.attack.measurement import (
    MOST_OVER_S,
    SLACK_BYTES,
    Measurement,
    calmest,
    faults,
    may_be_noise,
)
from tests.attack.memory import MonitoredProcess
from tests.attack.report import Result, summary, table
from tests.attack.rows import GROUPS
from tests.berth_process import ROOT
from tests.victim import Stream, longest_gap, streaming

MIB = 1 << 20
CALM = [n / 10 for n in range(100)]  # a chunk each 0.1 s, for 10 s


@pytest.mark.parametrize(
    ("streams", "gap"),
    [
        ([Stream(CALM)], 0.1),
        ([Stream([at for at in CALM if not 4 < at < 6])], 2.0),
        ([Stream([at for at in CALM if not 1 < at < 2.9])], 0.1),  # before it
        (
            [Stream([at for at in CALM if not 2.5 < at < 3.5])],
            1.0,
        ),  # begins before the interval and ends in it
        ([Stream(CALM), Stream([at for at in CALM if not 4 < at < 6])], 2.0),
        ([Stream(CALM), Stream([1.0, 5.0, 5.1])], 4.0),
        ([Stream(CALM), Stream([1.0, 4.0], is_open=True)], 4.0),  # and nothing more until 8
        ([Stream(CALM), Stream([1.0, 1.1])], 0.1),  # it has ended
        ([Stream(CALM), Stream([7.0, 7.1], is_open=True)], 0.9),  # its first chunk may be late
        ([Stream([1.0, 1.1]), Stream([])], 6.9),  # neither gets anything
        ([Stream([]), Stream([])], 5.0),
        ([], 5.0),
    ],
)
def test_the_longest_gap_of_a_victim(streams: list[Stream], gap: float) -> None:
    assert longest_gap(streams, 3.0, 8.0).seconds == pytest.approx(gap)


def test_faults_of_measurements() -> None:
    body = 10 * MIB
    most = 15 * MIB + SLACK_BYTES
    held = Measurement(undisturbed_s=0.1, gap_s=0.1 + MOST_OVER_S - 0.01, body_bytes=body, engine_bytes=most)
    assert faults(held) == []
    assert faults(Measurement(undisturbed_s=0.5, gap_s=0.1)) == []
    late = Measurement(undisturbed_s=0.1, gap_s=0.4)
    assert faults(late) == ["the victim stalled for 0.30 s longer than before"]
    for large in (
        Measurement(body_bytes=body, berth_bytes=most + 1),
        Measurement(body_bytes=body, engine_bytes=most + 1),
    ):
        assert faults(large) == ["memory grew by 111 MiB, 111 MiB are allowed"]
    assert faults(Measurement(problems=["answered"])) == ["answered"]


def test_possible_noise_is_retried_and_the_calmest_attempt_counts() -> None:
    late, later = Measurement(gap_s=0.4), Measurement(gap_s=0.9)
    broken = Measurement(gap_s=0.3, problems=["answered"])
    assert may_be_noise(late)
    assert (
        not may_be_noise(Measurement(gap_s=0.2))
        and not may_be_noise(Measurement(gap_s=20))
        and not may_be_noise(broken)
    )
    assert calmest([later, broken, late]) is late


def test_the_table_shows_what_failed() -> None:
    good = Result("f", "a good one", "key", Measurement(statuses=Counter({"404": 2})))
    bad = Result("f", "a bad one", "nobody", Measurement(gap_s=1.0))
    lines = table([good, bad]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "2 × 404" in lines[2] and "held" in lines[2] and "FAILED" in lines[3]
    assert summary([good, bad], 3).startswith("1 held, 1 FAILED")
    assert json.loads(json.dumps(bad.as_json()))["verdict"] == "FAILED"


def test_attack_names_are_unique() -> None:
    names = [f"{group.name}: {one.name}" for group in GROUPS for one in group.attacks]
    assert len(names) == len(set(names)) > 100
    assert {one.who for group in GROUPS for one in group.attacks} == {
        "key", "nobody", "a web page", "engine", "slip"
    }  # fmt: skip
    listed = subprocess.run(
        [sys.executable, "-m", "tests.attack", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert listed.stdout.count("\n") == len(names)


class Server:
    """Streams to all clients, a chunk per 10 ms, and stalls on demand."""

    def __init__(self) -> None:
        self.is_still = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(100):
                while self.is_still.is_set():
                    time.sleep(0.005)
                connection.sendall(b"data: {}\n\n")
                time.sleep(0.01)
            connection.sendall(b"data: [DONE]\n\n")


def test_a_victim_measures_a_stall_and_nothing_else() -> None:
    server = Server()
    with streaming(server.port, 2, "m", "k") as victim:
        victim.wait_until_streaming(60)
        before = time.monotonic()
        time.sleep(0.4)
        calm = longest_gap(victim.streams(before), before, time.monotonic()).seconds
        begun = time.monotonic()
        server.is_still.set()
        time.sleep(0.6)
        server.is_still.clear()
        time.sleep(0.2)
        time.sleep(1.2)  # its streams have ended, and others have begun
        victim.streams(time.monotonic())
        streams = victim.streams(begun)
        gap = longest_gap(streams, begun, time.monotonic()).seconds
        assert any(one.times[:1] < [begun] and one.times for one in streams), "forgotten"
        assert not [one.problem for one in streams if one.problem]
    server.close()
    assert calm < 0.4 < 0.55 < gap < 2


def test_peak_memory_is_measured() -> None:
    code = "import sys; sys.stdin.readline(); x = bytearray(150 << 20); del x; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        watched = MonitoredProcess(process.pid, with_children=True)
        watched.begin()
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        grown = watched.grown()
        process.kill()
        process.communicate()
    assert 145 * MIB < grown < 200 * MIB
