"""An engine for tests of the chat: it repeats the question, reasons first, and can go on for ever.

A fake, since no small model answers in a way that a test could count on. Run as `command` by a real Berth.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FOREVER = "go on for ever"
BREAK = "break"
REFUSED, STALLED = "refused", "stalled"  # as `user` of a completion


class Handler(BaseHTTPRequestHandler):
    answers = 0  # streamed completions

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the server's own lines."""

    def do_GET(self) -> None:
        self._send(b'{"object": "list", "data": [{"id": "talker", "object": "model"}]}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions":
            self._complete(asked)
            return
        if self.path != "/v1/chat/completions":
            self._send(b'{"error": {"message": "no such route", "code": null}}', 404)
            return
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
        if asked.get("stream_options"):
            self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _complete(self, asked: dict[str, Any]) -> None:
        """For benchmarks: two tokens for each word asked, and in each piece of the answer."""
        if asked.get("user") == REFUSED:
            self._send(b'{"error": {"message": "not to you", "code": null}}', 400)
            return
        count = asked["max_tokens"]
        usage = {"prompt_tokens": 2 * len(asked["prompt"].split()), "completion_tokens": count}
        if not asked.get("stream"):
            self._send(json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode())
            return
        Handler.answers += 1
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for _ in range(count // 2):
            self._event({"choices": [{"index": 0, "text": "a b", "finish_reason": None}]})
            time.sleep(0.001)
        if asked.get("user") == STALLED and Handler.answers > 2:
            threading.Event().wait(60)
        self._event({"choices": [], "usage": usage})
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

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201  # to its log
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
