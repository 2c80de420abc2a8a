"""An engine that violates HTTP on request and can record every byte that it receives.

`/health` and `/v1/models` answer correctly; `/rogue/NAME` misbehaves as named; all other paths are echoed.
Standard library only. With `--record DIR` the bytes of each connection go to a separate file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

FAULTY_ENGINE = str(Path(__file__).resolve())

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20
ENDLESS_MIB = 192  # "endless" ends here if the client stays
EVENT = b'data: {"choices": [{"text": "a"}]}\n\n'


def command(*flags: str) -> list[str]:
    """The argv template for an instance's `command`."""
    return [sys.executable, "-S", FAULTY_ENGINE, "--host", "{host}", "--port", "{port}", *flags]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def plain(body: bytes, *lines: bytes) -> bytes:
    head = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines, b"", b""]
    return b"\r\n".join(head) + body


def _pour(connection: socket.socket, piece: bytes) -> None:
    for _ in range(ENDLESS_MIB * MIB // len(piece)):
        connection.sendall(piece)


def _drip(connection: socket.socket, data: bytes, pause_s: float) -> None:
    for position in range(len(data)):
        connection.sendall(data[position : position + 1])
        time.sleep(pause_s)


def _reset(connection: socket.socket) -> None:
    """Make the next close send a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _wait_for_disconnect(connection: socket.socket) -> None:
    """Wait until the peer closes the connection."""
    while connection.recv(65536):
        pass


def _half_a_head_and_silence(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")
    _wait_for_disconnect(connection)


def _endless_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    _pour(connection, b"X-More: and more\r\n" * 1000)


def _endless_header(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-More: ")
    _pour(connection, b"x" * 65536)


def _endless_interim(connection: socket.socket) -> None:
    _pour(connection, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000)


def _endless_chunk_size(connection: socket.socket) -> None:
    connection.sendall(CHUNKED + b"5")
    _pour(connection, b";more=" + b"x" * 65530)


def _endless_trailer(connection: socket.socket) -> None:
    connection.sendall(CHUNKED + chunk(b"hello") + b"0\r\nX-Trailer: ")
    _pour(connection, b"x" * 65536)


def _endless_trailers(connection: socket.socket) -> None:
    connection.sendall(CHUNKED + chunk(b"hello") + b"0\r\n")
    _pour(connection, b"X-Trailer: more\r\n" * 1000)


def _drip_body(connection: socket.socket) -> None:
    body = b"slowly but surely"
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
    _drip(connection, body, 0.1)


def _drip_head(connection: socket.socket) -> None:
    _drip(connection, plain(b"at last"), 0.02)


def _drip_events(connection: socket.socket) -> None:
    connection.sendall(SSE)
    for _ in range(3):
        _drip(connection, chunk(EVENT), 0.005)
    connection.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _cut_events(connection: socket.socket) -> None:
    connection.sendall(SSE + chunk(EVENT) * 2)
    time.sleep(0.1)


def _reset_events(connection: socket.socket) -> None:
    connection.sendall(SSE + chunk(EVENT) * 2)
    time.sleep(0.1)
    _reset(connection)


def _garbage_after_events(connection: socket.socket) -> None:
    connection.sendall(SSE + chunk(EVENT))
    time.sleep(0.1)
    connection.sendall(b"\x00\xffnot a chunk\r\n")
    _wait_for_disconnect(connection)


def _endless_body(connection: socket.socket) -> None:
    connection.sendall(CHUNKED)
    _pour(connection, chunk(b"x" * 65536))


def _many_headers(connection: socket.socket) -> None:
    lines = [b"x-%d: %d" % (number, number) for number in range(3000)]
    connection.sendall(plain(b"many", *lines))


def _sending(data: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(data)

    return send


EARLY_BODY = b'{"error": {"message": "no", "type": "refused"}}'
EARLY = b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n%b" % (len(EARLY_BODY), EARLY_BODY)

BEHAVIOURS: dict[str, Callable[[socket.socket], None]] = {
    "nothing": _sending(b""),
    "reset": _reset,
    "garbage": _sending(os.urandom(4096)),
    "text": _sending(b"Segmentation fault (core dumped)\n"),
    "http-0.9": _sending(b"<html>hello</html>"),
    "http-2": _sending(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"),
    "half-a-head": _sending(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "half-a-head-and-silence": _half_a_head_and_silence,
    "silence": _wait_for_disconnect,
    "endless-head": _endless_head,
    "endless-header": _endless_header,
    "endless-interim": _endless_interim,
    "endless-chunk-size": _endless_chunk_size,
    "endless-trailer": _endless_trailer,
    "endless-trailers": _endless_trailers,
    "endless-body": _endless_body,
    "many-headers": _many_headers,
    "status-0": _sending(b"HTTP/1.1 000 What\r\nContent-Length: 0\r\n\r\n"),
    "status-999": _sending(b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n"),
    "two-lengths": _sending(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    "length-and-chunked": _sending(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "negative-length": _sending(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"),
    "vast-chunk": _sending(CHUNKED + b"fffffffffffffffffff\r\nhello"),
    "split-header": _sending(b"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\nContent-Length: 2\r\n\r\nok"),
    "zero-byte-in-header": _sending(b"HTTP/1.1 200 OK\r\nX-A: b\x00c\r\nContent-Length: 2\r\n\r\nok"),
    "length-too-long": _sending(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10),
    "length-too-short": _sending(plain(b"hello") + plain(b"THE NEXT ANSWER")),
    "no-length": _sending(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"),
    "body-of-204": _sending(b"HTTP/1.1 204 No Content\r\n\r\n" + plain(b"THE NEXT ANSWER")),
    "early-refusal": _sending(EARLY),
    "drip-body": _drip_body,
    "drip-head": _drip_head,
    "drip-events": _drip_events,
    "cut-events": _cut_events,
    "reset-events": _reset_events,
    "garbage-after-events": _garbage_after_events,
}  # fmt: skip


# An unannounced close after these could lose a request that is already on its way.
KEEP_ALIVE = frozenset({"drip-body", "drip-head", "drip-events", "many-headers"})


class Recorder:
    """Writes a connection's bytes to a file as they arrive."""

    def __init__(self, directory: Path | None, number: int) -> None:
        self._path = None if directory is None else directory / f"{number}.raw"

    def write(self, data: bytes) -> None:
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(data)


class Wire:
    """Reads and records requests, with a minimal, trusting parser."""

    def __init__(self, connection: socket.socket, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder
        self._buffer = b""

    def read_head(self) -> tuple[str, dict[str, str]] | None:
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (header.partition(":") for header in lines)
        }
        return line, headers

    def read_body(self, headers: dict[str, str]) -> int:
        """Its length; -1 if it is incomplete."""
        if "chunked" in headers.get("transfer-encoding", ""):
            return self._read_chunks()
        return self._skip(int(headers.get("content-length", 0)))

    def _read_chunks(self) -> int:
        total = 0
        while True:
            while b"\r\n" not in self._buffer:
                if not self._more():
                    return -1
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            if self._skip(size + 2) < 0:
                return -1
            if size == 0:
                return total
            total += size

    def _skip(self, size: int) -> int:
        left = size
        while left > len(self._buffer):
            left -= len(self._buffer)
            self._buffer = b""
            if not self._more():
                return -1
        self._buffer = self._buffer[left:]
        return size

    def _more(self) -> bool:
        data = self._connection.recv(256 * 1024)
        self._recorder.write(data)
        self._buffer += data
        return bool(data)


def _serve_connection(connection: socket.socket, recorder: Recorder) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = Wire(connection, recorder)
    with connection:
        try:
            while (head := wire.read_head()) is not None and _answer(connection, wire, *head):
                pass
        except (OSError, ValueError):
            pass  # the peer disconnected, or sent nonsense, which is recorded


def _answer(connection: socket.socket, wire: Wire, line: str, headers: dict[str, str]) -> bool:
    method, target, _ = line.split(" ", 2)
    path = target.partition("?")[0]
    name = path.removeprefix("/rogue/")
    if name == "early-refusal":
        BEHAVIOURS[name](connection)
        return False
    if name == "never-reads":
        time.sleep(3600)
    if (length := wire.read_body(headers)) < 0:
        return False
    if name != path:
        BEHAVIOURS[name](connection)
        return name in KEEP_ALIVE
    if path == "/v1/models":
        text: dict[str, object] = {"object": "list", "data": [{"id": "rogue", "object": "model"}]}
    else:
        text = {"method": method, "target": target, "bytes": length, "headers": headers}
    connection.sendall(plain(json.dumps(text).encode(), b"Content-Type: application/json"))
    return True


def _fork_daemon(live: Callable[[], None]) -> None:
    """Fork twice, into a new session: no longer our child."""
    if (pid := os.fork()) != 0:
        os.waitpid(pid, 0)
        return
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        live()
    os._exit(0)


def _fork_constantly() -> None:
    while True:
        _fork_daemon(lambda: time.sleep(2))
        time.sleep(0.01)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="faulty_engine")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fork-storm", action="store_true", help="fork daemons constantly")
    parser.add_argument(
        "--hold-port", action="store_true", help="fork a daemon that keeps listening and ignores SIGTERM"
    )
    parser.add_argument("--record", type=Path, metavar="DIR")
    return parser.parse_args()


def main() -> int:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listener = socket.create_server((args.host, args.port), backlog=512)
    if args.hold_port:
        _fork_daemon(lambda: time.sleep(3600))
    if args.fork_storm:
        threading.Thread(target=_fork_constantly, daemon=True).start()
    numbers = count(1)
    while True:
        connection, _ = listener.accept()
        recorder = Recorder(args.record, next(numbers))
        threading.Thread(target=_serve_connection, args=(connection, recorder), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
