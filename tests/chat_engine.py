"""An engine that speaks chat completions alone, or completions alone, and says what it is told to.

The last user message is the order: words to say, or one of `ORDERS`. Run it as `command()` says. With
`--target` it is only a door: it forwards chats, and nothing else, to another server under `--as`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

CALLS = [("call_1", "weather", '{"city":"Oslo"}'), ("call_2", "clock", "{}")]
USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
USAGE["prompt_tokens_details"] = {"cached_tokens": 5}  # type: ignore[assignment]

ARGUMENTS = argparse.Namespace()


def command(*flags: str) -> list[str]:
    """Its argv template."""
    return [sys.executable, __file__, "--port", "{port}", *flags]


def deltas(order: str) -> Iterator[dict[str, Any]]:
    """What it says, in pieces."""
    yield {"role": "assistant", "content": ""}
    if order.startswith("think"):
        yield {"reasoning_content" if order == "think" else "reasoning": "Hm"}
        yield {"reasoning_content" if order == "think" else "reasoning": "m."}
    if order.startswith("call"):
        for index, (call_id, name, arguments) in enumerate(CALLS):
            head = {"index": index, "id": call_id, "type": "function"}
            yield {"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}
            for piece in (arguments[:5], arguments[5:]):
                if piece:
                    yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
        return
    for word in (order if order not in ORDERS else "It is här.").split(" "):
        yield {"content": f" {word}"}


# What each changes: the finish reason, and faults.
ORDERS: dict[str, dict[str, Any]] = {
    "think": {},
    "think-other": {},
    "call": {"reason": "tool_calls"},
    "call-stop": {"reason": "stop"},  # as some engines end a turn with calls
    "length": {"reason": "length"},
    "stopped": {"stop_reason": "END"},
    "no-usage": {"has_usage": False},
    "no-done": {"has_done": False},
    "no-reason": {"reason": None},
    "unfinished": {"reason": None, "has_done": False},
    "error": {"error": {"message": "the GPU is gone", "code": 500}},
    "cut": {"is_cut": True},
    "refuse": {"status": 503},
    "bytes": {"piece": 1},
    "slow": {"delay_s": 0.4},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: ClassVar[dict[str, Any]] = {}
    refused: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path == "/v1/seen":
            self._json(200, {**Handler.seen, "refused": Handler.refused})
        elif self.path == "/v1/models":
            self._json(200, {"data": [{"id": ARGUMENTS.name}]})
        else:
            self._json(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path != ARGUMENTS.path:
            Handler.refused.append(self.path)
            self._json(404, {"detail": "Not Found"})
        elif ARGUMENTS.target:
            self._forward(raw)
        elif ARGUMENTS.says and json.loads(raw).get("input"):
            self._say(ARGUMENTS.says.encode())
        else:
            self._answer(json.loads(raw))

    def _answer(self, body: dict[str, Any]) -> None:
        if "messages" not in body and "prompt" not in body:
            self._json(400, {"error": {"message": "messages: missing", "type": "bad", "param": "messages"}})
            return
        Handler.seen = {"body": body, "headers": {k.lower(): v for k, v in self.headers.items()}}
        order = _order(body)
        plan = {"reason": "stop", **ORDERS.get(order, {})}
        if plan.get("status"):
            message = {"message": "too many requests", "type": "overloaded", "code": None}
            self._json(plan["status"], {"error": message}, ("retry-after", "7"))
        elif body.get("stream"):
            self._stream(body, order, plan)
        else:
            self._json(200, _whole(body, order, plan))

    def _stream(self, body: dict[str, Any], order: str, plan: dict[str, Any]) -> None:
        time.sleep(plan.get("delay_s", 0))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        pieces = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in _chunks(body, order, plan)]
        if plan.get("is_cut") or plan.get("error"):
            pieces = pieces[:3]
        if plan.get("error"):
            pieces.append(b"data: " + json.dumps({"error": plan["error"]}).encode() + b"\n\n")
        elif plan.get("has_done", True) and not plan.get("is_cut"):
            pieces.append(b"data: [DONE]\n\n")
        data = b"".join(pieces)
        size = plan.get("piece")
        for piece in [data[n : n + size] for n in range(0, len(data), size)] if size else pieces:
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if plan.get("is_cut"):
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _say(self, events: bytes) -> None:
        """A stream as it was given."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in (events[:70], events[70:], b""):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def _forward(self, raw: bytes) -> None:
        """To the target, as a chat of its model; the response as it comes."""
        target = urlsplit(ARGUMENTS.target)
        body = json.dumps({**json.loads(raw), "model": ARGUMENTS.forwarded_as})
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        headers = {"content-type": "application/json"}
        if key := os.environ.get("TARGET_KEY"):
            headers["authorization"] = f"Bearer {key}"
        connection.request("POST", self.path, body, headers)
        answer = connection.getresponse()
        self.send_response(answer.status)
        self.send_header("content-type", answer.getheader("content-type") or "")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        while piece := answer.read1():
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, status: int, value: Any, *headers: tuple[str, str]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("content-type", "application/json"), *headers):
            self.send_header(name, text)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


def _order(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return "completion"
    users = [message for message in body["messages"] if message["role"] == "user"]
    content = users[-1]["content"] if users else ""
    return content if isinstance(content, str) else " ".join(p.get("text", "") for p in content).strip()


def _head(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body.get("model")}


def _chunks(body: dict[str, Any], order: str, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    head = {**_head(body), "object": "chat.completion.chunk"}
    for delta in deltas(order):
        part = {"text": delta.get("content") or ""} if "prompt" in body else {"delta": delta}
        yield {**head, "choices": [{"index": 0, **part, "finish_reason": None}]}
    if plan["reason"]:
        last: dict[str, Any] = {"text": ""} if "prompt" in body else {"delta": {}}
        yield {**head, "choices": [{"index": 0, **last, **_finish(plan)}]}
    if plan.get("has_usage", True) and (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": USAGE}


def _finish(plan: dict[str, Any]) -> dict[str, Any]:
    return {"finish_reason": plan["reason"], "stop_reason": plan.get("stop_reason")}


def _whole(body: dict[str, Any], order: str, plan: dict[str, Any]) -> dict[str, Any]:
    said = list(deltas(order))
    message: dict[str, Any] = {"role": "assistant"}
    for name in ("content", "reasoning_content", "reasoning"):
        if text := "".join(delta.get(name) or "" for delta in said):
            message[name] = text
    if order.startswith("call"):
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in CALLS
        ]
    part = {"text": message.get("content", "")} if "prompt" in body else {"message": message}
    usage = {"usage": USAGE} if plan.get("has_usage", True) else {}
    return {**_head(body), "choices": [{"index": 0, **part, **_finish(plan)}], **usage}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="teller")
    parser.add_argument("--path", default="/v1/chat/completions", help="the only API it has")
    parser.add_argument("--target")
    parser.add_argument("--as", dest="forwarded_as")
    parser.add_argument("--says", help="the whole stream that answers a request with `input`")
    parser.add_argument("--exit", action="store_true", help="in place of serving")
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.parse_args(namespace=ARGUMENTS)
    until = time.monotonic() + ARGUMENTS.load_s
    for percent in (10, 40, 80):
        if ARGUMENTS.load_s:
            os.write(1, b"Loading safetensors checkpoint shards:  %d%% Completed\n" % percent)
            time.sleep(ARGUMENTS.load_s / 4)
    time.sleep(max(0.0, until - time.monotonic()))
    if ARGUMENTS.exit:
        sys.exit("the model is broken")
    ThreadingHTTPServer(("127.0.0.1", ARGUMENTS.port), Handler).serve_forever()
