"""A client whose streams are to be disturbed, as a process: `python -m tests.victim PORT NUMBER MODEL`.

The key, if needed, is in the environment. Streams one response after another; of two parallel streams, one is
always running. For each line it reads, a time, it writes the arrival times of chunks since then, by the clock
that all processes of a machine share. Standard library only; its own work is negligible.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_KEY = "VICTIM_KEY"
_TIMEOUT_S = 120.0
_KEPT_S = 120.0  # for ended streams; no attack takes as long
_PAUSE_S = 0.05  # after a failed stream


@dataclass(slots=True)
class Stream:
    """The arrival times of one response's chunks; `is_open`: more are expected."""

    times: list[float] = field(default_factory=list)
    is_open: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    seconds: float = 0.0
    began: float = 0.0
    whose: str = ""


def longest_gap(streams: Sequence[Stream], begin: float, end: float) -> Gap:
    """The longest time without a chunk that overlaps the interval from `begin` to `end`.

    Within each stream, from its first chunk on; and over all together, for streams that never begin.
    """
    together = sorted(at for one in streams for at in one.times if at <= end)
    last = max((at for at in together if at <= begin), default=begin)
    all_of_them = [last, *(at for at in together if at > last), end]
    gaps = [_longest([*one.times, end] if one.is_open else one.times, begin, end, "one") for one in streams]
    return max(*gaps, _longest(all_of_them, begin, end, "all"), Gap())


def _longest(times: Sequence[float], begin: float, end: float, whose: str) -> Gap:
    pairs = ((a, b) for a, b in pairwise(times) if b > begin and a < end)
    return max((Gap(b - a, a, whose) for a, b in pairs), default=Gap())


class Victim:
    """The victim's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def streams(self, since: float) -> list[Stream]:
        """The streams that were running since then."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{since}\n")
        self._process.stdin.flush()
        return [Stream(**one) for one in json.loads(self._process.stdout.readline())]

    def wait_until_streaming(self, num_chunks: int = 20, timeout_s: float = 60) -> None:
        began = time.monotonic()
        while sum(len(one.times) for one in self.streams(began)) < num_chunks:
            assert time.monotonic() < began + timeout_s, "the victim gets no chunks"
            time.sleep(0.02)


@contextmanager
def streaming(port: int, num_streams: int, model: str = "", key: str = "") -> Iterator[Victim]:
    words = [sys.executable, "-m", __name__, str(port), str(num_streams), model]
    process = subprocess.Popen(
        words,
        cwd=_ROOT,
        env={**os.environ, _KEY: key},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Victim(process)
    finally:
        process.kill()
        process.communicate()


# The code within the process


class _Streams:
    """All streams of the process."""

    def __init__(self, port: int, model: str, key: str) -> None:
        self._port = port
        self._streams: list[Stream] = []
        self._lock = threading.Lock()
        body = json.dumps(
            {
                **({"model": model} if model else {}),
                "prompt": "Once upon a time",
                "max_tokens": 1800,
                "ignore_eos": True,
                "stream": True,
                "temperature": 0,
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._request = head.encode() + body

    def stream_for_ever(self) -> None:
        while True:
            stream = Stream(is_open=True)
            with self._lock:
                self._streams.append(stream)
            try:
                self._read(stream)
            except OSError as error:
                stream.problem = repr(error)
            stream.is_open = False
            if stream.problem:
                time.sleep(_PAUSE_S)

    def _read(self, stream: Stream) -> None:
        with socket.create_connection(("127.0.0.1", self._port), _TIMEOUT_S) as connection:
            connection.sendall(self._request)
            last = b""
            while piece := connection.recv(1 << 16):
                if b"data: " in piece:
                    stream.times.append(time.monotonic())
                last = (last + piece)[-400:]
                if b"data: [DONE]" in last:
                    return
        stream.problem = f"it ended with {last!r}"

    def seen(self, since: float) -> list[dict[str, object]]:
        """The streams that were running since then."""
        kept = [min(since, time.monotonic() - _KEPT_S)]
        with self._lock:
            self._streams = [one for one in self._streams if one.is_open or one.times[-1:] >= kept]
            return [
                asdict(one) | {"times": [at for at in one.times if at >= since - 1]}
                for one in self._streams
                if one.is_open or one.times[-1:] >= [since]
            ]


def main() -> None:
    port, num_streams, model = sys.argv[1:]
    streams = _Streams(int(port), model, os.environ[_KEY])
    for _ in range(int(num_streams)):
        threading.Thread(target=streams.stream_for_ever, daemon=True).start()
        time.sleep(0.3)  # so that they do not begin and end together
    for line in sys.stdin:
        sys.stdout.write(json.dumps(streams.seen(float(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
