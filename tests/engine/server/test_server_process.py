"""The server process: how it starts, fails and stops, and what clients see."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import DeviceLost, EngineDead
from engine.server.http.listener import AddressInUse, listen
from tests.engine.server.serving import WAIT_S, fake_core, running, wait_until
from tests.engine.server.test_streams import Valve, events

COMPLETIONS = "/v1/completions"
IDLE = re.compile(r"^vllm:num_requests_running\{.*\} 0", re.MULTILINE)
ROOT = Path(__file__).parents[3]


@contextmanager
def process(*words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m engine` on one thread; killed if the test has not stopped it."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "engine", *words], cwd=ROOT, env=environ, stdout=output, stderr=output
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait(WAIT_S)


def port_of(log: Path) -> int:
    """The port in the process's log."""

    def line() -> str | None:
        return next((text for text in log.read_text().splitlines() if "Listening on" in text), None)

    wait_until(lambda: line() is not None)
    return int(str(line()).rsplit(" ", 1)[1].rstrip("."))


def wait_ready(client: httpx.Client, child: subprocess.Popen[bytes]) -> None:
    def is_ready() -> bool:
        assert child.poll() is None
        return client.get("/health").status_code == 200

    wait_until(is_ready)


def test_a_process_serves_a_checkpoint_and_stops_with_0(tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["--model", str(tiny_model), "--port", "0", "--served-model-name", "tiny", "--dtype", "float32"]
    with (
        process(*words, "--enforce-eager", log=log) as child,
        httpx.Client(base_url=f"http://127.0.0.1:{port_of(log)}", timeout=WAIT_S, trust_env=False) as client,
    ):
        wait_ready(client, child)
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        answer = client.post(COMPLETIONS, json={"prompt": "abc", "max_tokens": 5, "ignore_eos": True})
        assert answer.json()["usage"]["completion_tokens"] == 5
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT_S) == 0
    text = log.read_text()
    assert "--enforce-eager is a vLLM flag" in text
    assert "Traceback" not in text


def test_a_process_with_a_stream_stops_in_time(tiny_model: Path, tmp_path: Path) -> None:
    """The stream gets its rest or an error event, but never looks complete when it is not."""
    log = tmp_path / "log"
    words = ["--model", str(tiny_model), "--port", "0", "--shutdown-timeout", "0"]
    with (
        process(*words, log=log) as child,
        httpx.Client(base_url=f"http://127.0.0.1:{port_of(log)}", timeout=WAIT_S, trust_env=False) as client,
    ):
        wait_ready(client, child)
        body = {"prompt": ["a"] * 32, "max_tokens": 500, "ignore_eos": True, "stream": True}
        received: list[Any] = []
        with (
            client.stream("POST", COMPLETIONS, json=body) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            for event in events(response):
                if not received:
                    child.send_signal(signal.SIGTERM)
                received.append(event)
        assert received[-1]["error"]["code"] == "shutting_down"
        assert child.wait(WAIT_S) == 0
    assert "Traceback" not in log.read_text()


def test_a_process_finishes_its_stream_before_it_stops(tiny_model: Path, tmp_path: Path) -> None:
    """After SIGTERM the stream continues to [DONE], new requests are refused, and the exit status is 0."""
    log = tmp_path / "log"
    words = ["--model", str(tiny_model), "--port", "0", "--shutdown-timeout", "60"]
    with (
        process(*words, log=log) as child,
        httpx.Client(base_url=f"http://127.0.0.1:{port_of(log)}", timeout=WAIT_S, trust_env=False) as client,
        httpx.Client(base_url=client.base_url, timeout=WAIT_S, trust_env=False) as late,
    ):
        wait_ready(client, child)
        late.get("/health")  # opens a connection that stays open
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        with client.stream("POST", COMPLETIONS, json={**body, **options}) as response:
            stream = events(response)
            next(stream)
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: late.get("/health").status_code == 503)
            refused = late.post(COMPLETIONS, json=body)
            *_, usage, done = stream
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) >= 1
        assert done == "[DONE]"
        assert usage["usage"]["completion_tokens"] == 200
        assert child.wait(WAIT_S) == 0
    assert "Traceback" not in log.read_text()


def test_a_client_that_does_not_read_does_not_delay_the_stop(tiny_model: Path, tmp_path: Path) -> None:
    """Its stream fills all buffers and stalls; the process still stops in time."""
    log = tmp_path / "log"
    words = ["--model", str(tiny_model), "--port", "0", "--shutdown-timeout", "0.5", "--max-num-seqs", "64"]
    with process(*words, log=log) as child:
        port = port_of(log)
        url = f"http://127.0.0.1:{port}"
        with (
            httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as client,
            socket.socket() as connection,
        ):
            wait_ready(client, child)
            # Logprobs are never merged: many megabytes, of which the last part is still unsent at the end.
            prompts = {"prompt": ["a"] * 64, "max_tokens": 125, "ignore_eos": True}
            body = json.dumps({**prompts, "stream": True, "logprobs": 20})
            request = (
                f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            )
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(WAIT_S)
            connection.connect(("127.0.0.1", port))
            connection.sendall(request.encode())
            assert connection.recv(16).startswith(b"HTTP/1.1 200")
            wait_until(lambda: IDLE.search(client.get("/metrics").text) is not None)
            child.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert child.wait(WAIT_S) == 0
            assert time.monotonic() - started < 20, "0.5 s for requests, 2 s each for aborts and connections"
    assert "Traceback" not in log.read_text()


def test_a_signal_while_loading_ends_it_at_once(tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process("--model", str(tiny_model), "--port", "0", log=log) as child:
        port = port_of(log)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S, trust_env=False) as client:
            assert client.get("/health").status_code in (200, 503)
        child.send_signal(signal.SIGINT)
        assert child.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model", "/no/such/model"], 1, "model not found: There is no directory /no/such/model"),
        (["--model", "{empty}"], 65, "unsupported model: {empty} has no config.json"),
        (
            ["--model", "{weightless}"],
            65,
            "unsupported model: {weightless}/config.json: architectures is None",
        ),
        (["--model", "{tiny}", "--max-model-len", "9k"], 2, "bad arguments: --max-model-len 9000"),
        (["--model", "{tiny}", "--max-model-length", "9"], 2, "did you mean --max-model-len"),
        (["--model", "{tiny}", "--chat-template", "{% for %}"], 2, "bad arguments: The chat template"),
        (["--model", "{tiny}", "--port", "{taken}"], 98, "Address already in use: port {taken}"),
        (["--model", "{tiny}", "--host", "203.0.113.1"], 2, "Can't listen on 203.0.113.1"),
    ],
)
def test_a_startup_failure_is_the_last_log_line(
    tiny_model: Path, fake_model: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        names = {
            "{empty}": str(tmp_path / "empty"),
            "{weightless}": str(fake_model),
            "{tiny}": str(tiny_model),
            "{taken}": str(other.getsockname()[1]),
        }
        for name, value in names.items():
            words = [word.replace(name, value) for word in words]
            message = message.replace(name, value)
        with process("--port", "0", *words, log=tmp_path / "log") as child:
            assert child.wait(WAIT_S) == code
    text = (tmp_path / "log").read_text()
    assert message in text.splitlines()[-1]
    assert "Traceback" not in text


def test_a_port_in_use_is_reported_at_once() -> None:
    first = listen("127.0.0.1", 0)
    with first, pytest.raises(AddressInUse, match=f"port {first.getsockname()[1]}"):
        listen("127.0.0.1", first.getsockname()[1])


def test_running_requests_can_finish_before_a_stop(fake_model: Path) -> None:
    valve = Valve()
    with running(fake_model, fake_core(fake_model, before=valve), shutdown_timeout_s=30) as server:
        body = {"prompt": "a", "max_tokens": 20, "ignore_eos": True, "stream": True}
        with server.http() as client, server.http() as late:
            valve.let_pass(5)
            with client.stream("POST", COMPLETIONS, json=body) as response:
                late.get("/health")  # opens a connection that stays open
                server.stop()
                wait_until(lambda: late.get("/health").status_code == 503)
                refused = late.post(COMPLETIONS, json=body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
                valve.open()
                *_, last = events(response)
        assert last == "[DONE]"
        server.join()
        assert server.failure is None


def test_a_stop_does_not_exceed_its_timeout(fake_model: Path) -> None:
    valve = Valve()
    with running(fake_model, fake_core(fake_model, before=valve), shutdown_timeout_s=0.2) as server:
        body = {
            "prompt": "a",
            "max_tokens": 150,
            "ignore_eos": True,
            "stream": True,
            "skip_special_tokens": False,
        }
        with server.http() as client:
            valve.let_pass(5)
            started = time.monotonic()
            with (
                client.stream("POST", COMPLETIONS, json=body) as response,
                pytest.raises(httpx.RemoteProtocolError),
            ):
                received = []
                for event in events(response):
                    received.append(event)
                    server.stop()
            assert "error" in received[-1]
        server.join()
        assert time.monotonic() - started < 30
        valve.open()


def test_an_engine_that_dies_ends_the_server_and_its_streams(fake_model: Path) -> None:
    valve = Valve()
    with running(fake_model, fake_core(fake_model, before=valve)) as server:
        body = {
            "prompt": "a",
            "max_tokens": 50,
            "ignore_eos": True,
            "stream": True,
            "skip_special_tokens": False,
        }
        valve.let_pass(2)
        received = []
        with (
            server.http() as client,
            client.stream("POST", COMPLETIONS, json=body) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            for event in events(response):
                received.append(event)
                if len(received) == 1:
                    valve.failure = DeviceLost("the device fell off the bus")
                    valve.let_pass()
        assert received[-1]["error"]["code"] == "engine_dead"
        server.join()
        assert isinstance(server.failure, EngineDead)
        assert "fell off the bus" in str(server.failure)


def test_one_write_per_step(fake_model: Path) -> None:
    """All events of a step are sent in one write: here role, content and end."""
    with running(fake_model, fake_core(fake_model)) as server:
        body = json.dumps(
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "stream": True, "seed": 2}
        )
        request = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )
        with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as connection:
            connection.sendall(request.encode())
            received = b""
            while piece := connection.recv(65536):
                received += piece
    head, _, chunked = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    first_size = int(chunked.split(b"\r\n")[0], 16)
    first = chunked.split(b"\r\n", 1)[1][:first_size]
    assert b'"role"' in first
    assert b'"finish_reason":"length"' in first


def test_server_threads_end(fake_model: Path) -> None:
    """`running` checks this after every server; tested here on its own."""
    before = threading.active_count()
    with running(fake_model, fake_core(fake_model)) as server:
        assert threading.active_count() > before
        server.stop()
        server.join()
    assert threading.active_count() == before


def test_a_program_can_call_run_server(tiny_model: Path, tmp_path: Path) -> None:
    """It runs on the main thread until a signal; errors are raised."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from engine import run_server\n"
        "from engine.errors import EngineError\n"
        "try:\n"
        "    run_server(model=sys.argv[1] + '-gone', port=0)\n"
        "except EngineError as error:\n"
        "    print(error.code, flush=True)\n"
        "run_server(model=sys.argv[1], host='127.0.0.1', port=0, max_num_seqs=4, max_model_len=64)\n"
        "print('served', flush=True)\n"
    )
    log = tmp_path / "log"
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, str(program), str(tiny_model)], env=environ, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: log.read_text().count("Listening on") == 2)
        port = int(log.read_text().rsplit("Listening on", 1)[1].split("port ")[1].split(".")[0])
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S, trust_env=False) as client:
            wait_ready(client, child)
            assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 64
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT_S) == 0
    finally:
        child.kill()
        child.wait(WAIT_S)
    assert "model_not_found" in log.read_text()
    assert log.read_text().rstrip().endswith("served")
