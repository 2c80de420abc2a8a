"""A client whose streams others disturb, in a process of its own: `python -m tests.attack.victim PORT MODEL`.

The key comes in the environment. Streams one answer after another, two side by side, so that one of them is
always under way. For each line that it reads, a time, it writes when chunks have come since, by the clock
that all processes of a machine share. Standard library only; its own work costs it next to nothing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

NUM_STREAMS = 2
KEY = "ATTACK_VICTIM_KEY"
_TIMEOUT_S = 120.0
_KEPT_S = 120.0  # streams that have ended; no attack takes as long
_PAUSE_S = 0.05  # after one that has failed


@dataclass(slots=True)
class Stream:
    times: list[float] = field(default_factory=list)  # when chunks of events came
    is_open: bool = True
    problem: str = ""


class Victim:
    """All that it has seen."""

    def __init__(self, port: int, model: str, key: str) -> None:
        self._port = port
        self._streams: list[Stream] = []
        self._lock = threading.Lock()
        body = json.dumps(
            {
                "model": model,
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
            stream = Stream()
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
        """What was under way since then."""
        kept = [min(since, time.monotonic() - _KEPT_S)]
        with self._lock:
            self._streams = [one for one in self._streams if one.is_open or one.times[-1:] >= kept]
            return [
                {
                    "times": [at for at in one.times if at >= since - 1],
                    "is_open": one.is_open,
                    "problem": one.problem,
                }
                for one in self._streams
                if one.is_open or one.times[-1:] >= [since]
            ]


def main() -> None:
    victim = Victim(int(sys.argv[1]), sys.argv[2], os.environ[KEY])
    for _ in range(NUM_STREAMS):
        threading.Thread(target=victim.stream_for_ever, daemon=True).start()
        time.sleep(0.3)  # so that they don't begin and end together
    for line in sys.stdin:
        sys.stdout.write(json.dumps(victim.seen(float(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
