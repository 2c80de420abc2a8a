"""An engine for tests of the chat: it says what it was asked, thinks first, and can go on for ever.

A fake, since no small model answers in a way that a test could count on. Run as `command` by a real Berth.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FOREVER = "go on for ever"
BREAK = "break"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing of the server's own."""

    def do_GET(self) -> None:
        self._send(b'{"object": "list", "data": [{"id": "talker", "object": "model"}]}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        *before, last = asked["messages"]
        system = next((one["content"] for one in before if one["role"] == "system"), None)
        said = sum(one["role"] != "system" for one in before)
        text = f"[{last['content']}] after {said}, system={system}, temperature={asked.get('temperature')}"
        if not asked["stream"]:
            self._send(
                json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
            )
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": waiting\n\n")
        self._delta(reasoning_content="Hm.")
        if last["content"] == BREAK:
            self._event(
                {"error": {"message": "the engine\nis broken", "type": "internal_error", "code": "x"}}
            )
            return
        if last["content"] == FOREVER:
            self._go_on()
            return
        for word in text.split(" "):
            self._delta(content=word + " ")
        self._delta(content="\x1b[31mesc\u2028")
        self.wfile.write(b"data: [DONE]\n\n")

    def _go_on(self) -> None:
        try:
            while True:
                self._delta(content="more ")
                time.sleep(0.02)
        except OSError:
            print("the client has left", flush=True)  # noqa: T201  # to its log

    def _delta(self, **delta: str) -> None:
        self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode())
        self.wfile.flush()

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201  # to its log
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
