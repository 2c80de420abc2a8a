"""An engine with hostile responses on some paths: `--on /health=huge`; all other responses are correct.

`--first N`: the first N responses of such a path are correct, so that it starts. Standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.faulty_engine import CHUNKED, MIB, SSE, Recorder, Wire, chunk, plain

HOSTILE_ENGINE = str(Path(__file__).resolve())
HUGE_MIB = 700
_JSON = b"Content-Type: application/json"


def command(*flags: str) -> list[str]:
    """The argv template, for an instance's `command`."""
    return [sys.executable, "-S", HOSTILE_ENGINE, "--host", "{host}", "--port", "{port}", *flags]


def _huge(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (HUGE_MIB * MIB))
    for _ in range(HUGE_MIB):
        connection.sendall(b"x" * MIB)


def _huge_json(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + _JSON + b"\r\nContent-Length: %d\r\n\r\n" % (600 * MIB))
    for _ in range(600):
        connection.sendall(b"[" * MIB)


def _endless(connection: socket.socket) -> None:
    connection.sendall(CHUNKED)
    for _ in range(HUGE_MIB):
        connection.sendall(chunk(b"x" * MIB))


def _gzip_bomb(connection: socket.socket) -> None:
    connection.sendall(plain(_BOMB, b"Content-Encoding: gzip", _JSON))


_BOMB = gzip.compress(b"\0" * (64 * MIB)) * 12  # more than 700 MiB, as several gzip members


def _nested(connection: socket.socket) -> None:
    connection.sendall(plain(b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", _JSON))


def _drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def _endless_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(200):
        connection.sendall(b"X-More: and more\r\n" * 60_000)


def _no_numbers(connection: socket.socket) -> None:
    page = b'# TYPE a gauge\na 1\na nonsense\nvllm:num_requests_running 0x10\nb{c="d} 1\nc NaN NaN NaN\n'
    connection.sendall(plain(page + b"long " + b"9" * 100_000 + b"\n" + b"open{" * 20_000))


def _one_endless_event(connection: socket.socket) -> None:
    connection.sendall(SSE + chunk(b'data: {"choices": [{"text": "'))
    for _ in range(200):
        connection.sendall(chunk(b"x" * MIB))


BEHAVIOURS: dict[str, Callable[[socket.socket], None]] = {
    "huge": _huge,
    "huge-json": _huge_json,
    "endless": _endless,
    "gzip-bomb": _gzip_bomb,
    "nested": _nested,
    "drip": _drip,
    "endless-head": _endless_head,
    "no-numbers": _no_numbers,
    "one-endless-event": _one_endless_event,
}


class Engine:
    """Maps paths to behaviours."""

    def __init__(self, behaviours: dict[str, str], num_right: int, location: str) -> None:
        self._behaviours = behaviours
        self._num_right = num_right
        self._location = location
        self._asked: Counter[str] = Counter()

    def converse(self, connection: socket.socket) -> None:
        wire = Wire(connection, Recorder(None, 0))
        with connection:
            try:
                while (head := wire.read_head()) is not None and wire.read_body(head[1]) >= 0:
                    self._answer(connection, head[0].split(" ")[1].partition("?")[0])
            except (OSError, ValueError):
                pass  # the client has closed the connection

    def _answer(self, connection: socket.socket, path: str) -> None:
        self._asked[path] += 1
        name = self._behaviours.get(path)
        if name == "redirect":
            location = self._location.encode()
            connection.sendall(
                b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
            )
        elif name and self._asked[path] > self._num_right:
            BEHAVIOURS[name](connection)
            connection.close()
        else:
            models = {"object": "list", "data": [{"id": "hostile", "object": "model"}]}
            connection.sendall(plain(json.dumps(models).encode(), _JSON))


def main() -> None:
    parser = argparse.ArgumentParser(prog="hostile_engine")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--on", action="append", default=[], metavar="PATH=NAME")
    parser.add_argument("--first", type=int, default=0, metavar="N")
    parser.add_argument("--slow-start", type=float, default=0, metavar="S")
    parser.add_argument("--location", default="", help="the target of redirects")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(args.slow_start)
    engine = Engine(dict(one.split("=") for one in args.on), args.first, args.location)
    listener = socket.create_server((args.host, args.port), backlog=128)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=engine.converse, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
