"""A client whose stream others disturb, in a process of its own: `python -m tests.engine.server.victim PORT`.

Streams one answer after another until its input closes; then writes when each piece came, by the clock
that all processes of a machine share. Its own reading costs it next to nothing, whatever the tests do.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

_BODY = json.dumps(
    {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}
).encode()


def _stream(port: int, times: list[float], ended: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: victim\r\ncontent-type: application/json\r\n"
            f"content-length: {len(_BODY)}\r\nconnection: close\r\n\r\n"
        )
        connection.sendall(head.encode() + _BODY)
        while not ended.is_set() and connection.recv(1 << 16):
            times.append(time.monotonic())


def main() -> None:
    port = int(sys.argv[1])
    times: list[float] = []
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        _stream(port, times, ended)
    print(json.dumps(times))  # noqa: T201


if __name__ == "__main__":
    main()
