"""An inference engine in outline: a real process with a real HTTP server and faults to order.

Run it as `[sys.executable, FAKE_ENGINE, "--port", "{port}", …]`, or make the whole argv with `command()`.
Standard library only, so that it starts in some 60 ms. It speaks just enough of OpenAI's protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

FAKE_ENGINE = str(Path(__file__).resolve())

# Of vLLM's names some of each type; then what Berth has to cope with: our label, our name, no sample.
METRICS = """\
# HELP vllm:num_requests_running Requests that take part in steps.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="MODEL"} 0
# HELP vllm:generation_tokens_total Tokens generated.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{model_name="MODEL"} 42
# HELP vllm:time_to_first_token_seconds From arrival to first token.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{le="0.5",model_name="MODEL"} 1
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="MODEL"} 2
vllm:time_to_first_token_seconds_sum{model_name="MODEL"} 1.25
vllm:time_to_first_token_seconds_count{model_name="MODEL"} 2
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1.5e+07
fake_labelled{instance="its own"} 1
berth_instances{state="running"} 1000000
this is no sample
"""


LLAMA_HELP = """\
----- common params -----

-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-b,    --batch-size N                   logical maximum batch size (default: 2048)
-ub,   --ubatch-size N                  physical maximum batch size (default: 512)
-np,   --parallel N                     number of server slots (default: -1, -1 = auto)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM, either an exact number,
                                        'auto', or 'all' (default: auto)
-m,    --model FNAME                    model path to load
-mm,   --mmproj FILE                    path to a multimodal projector file
-a,    --alias STRING                   set model name aliases, comma-separated (to be used by API)
--mmproj-auto, --no-mmproj, --no-mmproj-auto
                                        whether to use multimodal projector file (if available)
--embedding, --embeddings               restrict to only support embedding use case
--metrics                               enable prometheus compatible metrics endpoint (default: disabled)
--chunk-delay N                         between two pieces of a stream, of the fake
--fail-with TEXT                        print it and exit, of the fake
--ballast-mb N                          memory to hold, of the fake
"""


def command(*flags: str) -> list[str]:
    """The argv template of a fake engine, for `InstanceSpec.command`."""
    placeholders = ["--host", "{host}", "--port", "{port}", "--model", "{model}"]
    return [sys.executable, "-S", FAKE_ENGINE, *placeholders, *flags]


def write_fake_python(path: Path) -> str:
    """Write an "interpreter" for VLLM_PYTHON: `path -m any.module FLAGS` runs a fake engine with FLAGS."""
    path.write_text(f'#!/bin/sh\nshift 2\nFAKE_VLLM=1 exec "{sys.executable}" -S "{FAKE_ENGINE}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def write_fake_llama(path: Path) -> str:
    """Write a "llama-server": it prints help like the real one, and runs a fake engine with its key."""
    flags = '--check-key --key-variable LLAMA_API_KEY "$@"'
    path.write_text(
        f"#!/bin/sh\nif [ \"$1\" = --help ]; then cat <<'HELP'\n{LLAMA_HELP}HELP\nexit; fi\n"
        f'FAKE_VLLM=1 exec "{sys.executable}" -S "{FAKE_ENGINE}" {flags}\n'
    )
    path.chmod(0o755)
    return str(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fake_engine", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--served-model-name", "--alias", help="what /v1/models names; the model by default")
    parser.add_argument("--ignore-term", action="store_true", help="SIGTERM does nothing")
    parser.add_argument(
        "--slow-start", type=float, default=0.0, metavar="S", help="listen only after S seconds"
    )
    parser.add_argument(
        "--chatty-start", action="store_true", help="print a line each 50 ms of the slow start"
    )
    parser.add_argument("--die-after", type=float, metavar="S", help="exit S seconds after listening")
    parser.add_argument("--exit-code", type=int, default=1, help="what to exit with when dying or failing")
    parser.add_argument("--wedge", action="store_true", help="accept connections and never answer")
    parser.add_argument("--unhealthy", action="store_true", help="/health answers 503 for ever")
    parser.add_argument("--grandchild", action="store_true", help="leave a child that ignores SIGTERM too")
    parser.add_argument(
        "--daemonize", action="store_true", help="leave a daemon in a session of its own that ignores SIGTERM"
    )
    parser.add_argument(
        "--print-mb", type=float, default=0.0, metavar="N", help="print N MB of log when ready"
    )
    parser.add_argument("--fail-with", metavar="TEXT", help="print TEXT to stderr and exit")
    parser.add_argument("--wrong-model", action="store_true", help="/v1/models names something else")
    parser.add_argument("--wrong-key", action="store_true", help="refuse every key on /v1")
    parser.add_argument("--check-key", action="store_true", help="refuse keys other than VLLM_API_KEY on /v1")
    parser.add_argument("--key-variable", default="VLLM_API_KEY", metavar="NAME", help="in place of this one")
    parser.add_argument("--port-in-use", action="store_true", help="fail as if the port were taken")
    parser.add_argument("--ballast-mb", type=int, default=0, metavar="N", help="hold N MB of memory")
    parser.add_argument("--metrics-delay", type=float, default=0.0, metavar="S", help="before /metrics")
    parser.add_argument("--metrics-page", metavar="FILE", help="what /metrics answers; a page by default")
    parser.add_argument("--chunk-delay", type=float, default=0.01, metavar="S", help="between two SSE chunks")
    parser.add_argument("--llama", action="store_true", help="/props and /slots as llama.cpp has them")
    arguments, unknown = parser.parse_known_args()
    if unknown and "FAKE_VLLM" not in os.environ:  # vLLM has more flags
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def _fork_stubborn_child() -> None:
    """A worker of the same group that ignores SIGTERM and outlives its parent."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(3600)


def _fork_stubborn_daemon() -> None:
    """Forked twice and in a session of its own, as daemons do: nobody's child, nobody's group."""
    if (pid := os.fork()) != 0:
        os.waitpid(pid, 0)
        return
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(3600)
    os._exit(0)


class FakeEngine:
    """One thread per connection; HTTP/1.1 with keep-alive."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._name = args.served_model_name or args.model
        self._key = os.environ.get(args.key_variable, "")
        self._ballast = [bytearray(os.urandom(1 << 20)) * args.ballast_mb]  # written to: it is really held

    def serve(self) -> None:
        """Listen and answer until the process ends. Raises OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in self._args.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._args.host, self._args.port))
        listener.listen(512)
        say(f"listening on {self._args.port}")
        if self._args.die_after is not None:
            timer = threading.Timer(self._args.die_after, os._exit, (self._args.exit_code,))
            timer.daemon = True
            timer.start()
        if self._args.print_mb:
            threading.Thread(target=_flood, args=(self._args.print_mb,), daemon=True).start()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as reader:
            try:
                while self._answer_one(connection, reader):
                    pass
            except OSError:
                pass  # the client has left

    def _answer_one(self, connection: socket.socket, reader: object) -> bool:
        request_line = reader.readline()  # type: ignore[attr-defined]
        if not request_line:
            return False
        method, target, _ = request_line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while line := reader.readline().strip():  # type: ignore[attr-defined]
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = _read_body(reader, headers)
        if self._args.wedge:
            time.sleep(3600)
        path = target.partition("?")[0]
        if path == "/health":
            status = 503 if self._args.unhealthy else 200
            _send(connection, status, {})
        elif path.startswith("/v1/") and not self._may_enter(headers):
            _send(connection, 401, {"error": {"message": "invalid key"}})
        elif path == "/v1/models":
            name = "something-else" if self._args.wrong_model else self._name
            _send(connection, 200, {"object": "list", "data": [{"id": name, "object": "model"}]})
        elif path in ("/v1/completions", "/v1/chat/completions"):
            self._complete(connection, json.loads(body or b"{}"))
        elif path.endswith("/metrics"):
            time.sleep(self._args.metrics_delay)
            page = METRICS.replace("MODEL", self._name)
            if self._args.metrics_page is not None:
                page = Path(self._args.metrics_page).read_text()
            _send(connection, 200, page, "text/plain; version=0.0.4")
        elif path in ("/headers", "/v1/headers"):
            _send(connection, 200, dict(headers))
        elif path == "/grow":  # by as many MB as the body says
            self._ballast.append(bytearray(os.urandom(1 << 20)) * int(body))
            _send(connection, 200, {})
        elif path == "/props" and self._args.llama:
            _send(connection, 200, {"total_slots": 4, "model_alias": self._name})
        elif path == "/slots" and self._args.llama:
            _send(connection, 200, json.dumps([{"id": number} for number in range(4)]))
        elif path == "/env":
            _send(connection, 200, dict(os.environ))
        else:
            text = body[:2000].decode("utf-8", "replace")
            _send(connection, 200, {"method": method, "target": target, "bytes": len(body), "body": text})
        return headers.get("connection", "").lower() != "close"

    def _may_enter(self, headers: dict[str, str]) -> bool:
        if self._args.wrong_key:
            return False
        return not self._args.check_key or headers.get("authorization") == f"Bearer {self._key}"

    def _complete(self, connection: socket.socket, request: dict[str, object]) -> None:
        count = int(request.get("max_tokens") or 16)  # type: ignore[call-overload]
        words = [f" token{i}" for i in range(count)]
        time.sleep(float(request.get("delay") or 0))  # type: ignore[arg-type]
        if not request.get("stream"):
            usage = {"completion_tokens": count}
            _send(connection, 200, _completion("".join(words), "length", self._name) | {"usage": usage})
            return
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for index, word in enumerate(words):
            reason = "length" if index == count - 1 else None
            _send_chunk(
                connection, b"data: " + json.dumps(_completion(word, reason, self._name)).encode() + b"\n\n"
            )
            time.sleep(self._args.chunk_delay)
        if (request.get("stream_options") or {}).get("include_usage"):  # type: ignore[attr-defined]
            last = _completion("", None, self._name) | {"choices": [], "usage": {"completion_tokens": count}}
            _send_chunk(connection, b"data: " + json.dumps(last).encode() + b"\n\n")
        _send_chunk(connection, b"data: [DONE]\n\n")
        connection.sendall(b"0\r\n\r\n")


def _read_body(reader: object, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return bytes(reader.read(int(headers.get("content-length", 0))))  # type: ignore[attr-defined]
    chunks = []
    while size := int(reader.readline(), 16):  # type: ignore[attr-defined]
        chunks.append(reader.read(size + 2)[:-2])  # type: ignore[attr-defined]
    reader.readline()  # type: ignore[attr-defined]
    return b"".join(chunks)


def _completion(text: str, finish_reason: str | None, model: str) -> dict[str, object]:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": model, "choices": [choice]}


def _send(
    connection: socket.socket, status: int, content: dict[str, object] | str, kind: str = "application/json"
) -> None:
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def _send_chunk(connection: socket.socket, data: bytes) -> None:
    connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _flood(megabytes: float) -> None:
    line = b"x" * 99 + b"\n"
    block = line * 1000
    for _ in range(round(megabytes * 10)):
        os.write(1, block)
    for _ in range(3):  # a line that is written during a rotation is lost
        say("flood over")
        time.sleep(0.5)


def say(text: str) -> None:
    """One line to the log, at once."""
    os.write(1, f"{text}\n".encode())


def main() -> int:
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.ignore_term else lambda *_: os._exit(0))
    if args.grandchild:
        _fork_stubborn_child()
    if args.daemonize:
        _fork_stubborn_daemon()
    if args.fail_with is not None:
        os.write(2, f"{args.fail_with}\n".encode())
        return int(args.exit_code)
    if args.port_in_use:
        os.write(2, b"OSError: [Errno 98] Address already in use\n")
        return int(args.exit_code)
    until = time.monotonic() + args.slow_start
    while (remaining := until - time.monotonic()) > 0:
        if args.chatty_start:
            say("loading")
        time.sleep(min(remaining, 0.05))
    try:
        FakeEngine(args).serve()
    except OSError as error:
        os.write(2, f"OSError: {error}\n".encode())
    return int(args.exit_code)


if __name__ == "__main__":
    sys.exit(main())
