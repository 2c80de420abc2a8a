"""Clients that disconnect, never read, are slow, or send too much or too many requests at once."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from tests import fake_engine
from tests.faults import faulty_engine
from tests.faults.environment import FaultEnvironment, eventually
from tests.faults.journal import Outcome
from tests.faults.scenario import Scenario
from tests.faults.smuggling import read_answer

_GIB = 1 << 30
_NUM_DISCONNECTS = 300
_NUM_IDLE = 2000
_HEAD_TIMEOUT_S = 30
_BODY_TIMEOUT_S = 60
_SLACK_S = 6


def _post(target: str, body: bytes) -> bytes:
    return _head(target, len(body)) + body


def _head(target: str, length: int) -> bytes:
    line = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{line}Content-Length: {length}\r\n\r\n".encode()


def _no_lease_left(env: FaultEnvironment, name: str) -> None:
    eventually("no request is left", lambda: env.record(name)["in_flight"] == 0)


def disconnect_at_any_moment(env: FaultEnvironment) -> None:
    """Disconnect by FIN or RST, anywhere between the head of the request and the end of the stream."""
    bodies = (
        b'{"stream": true, "max_tokens": 1000}',
        b'{"stream": true, "max_tokens": 3}',
        b'{"delay": 1}',
        b"{}",
    )
    with env.instance("one", fake_engine.command("--chunk-delay", "0.02")):
        with ThreadPoolExecutor(16) as pool:
            list(
                pool.map(lambda seed: _disconnect(env, random.Random(seed), bodies), range(_NUM_DISCONNECTS))
            )
        _no_lease_left(env, "one")
        assert env.complete("one", stream=True).is_done


def _disconnect(env: FaultEnvironment, dice: random.Random, bodies: tuple[bytes, ...]) -> None:
    request = _post("/proxy/one/v1/completions", dice.choice(bodies))
    is_complete = dice.random() < 0.7
    with env.connect() as client:
        client.sendall(request if is_complete else request[: dice.randrange(len(request))])
        if is_complete and dice.random() < 0.6:
            client.recv(dice.choice((1, 50, 5000)))
        time.sleep(dice.choice((0, 0.001, 0.06, 0.2)))
        if dice.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    env.journal.count(Outcome.LEFT)


def leave_while_the_engine_starts(env: FaultEnvironment) -> None:
    with env.instance("one", fake_engine.command("--slow-start", "2"), wait_s=0):
        for _ in range(50):
            with env.connect() as client:
                client.sendall(_post("/proxy/one/v1/completions", b"{}"))
            env.journal.count(Outcome.LEFT)
        assert env.complete("one").outcome is Outcome.ANSWERED
        _no_lease_left(env, "one")


def never_read(env: FaultEnvironment) -> None:
    """60 clients request 192 MiB each: unread data stays in the engine. Twice: nothing accumulates."""
    with env.memory_bounded(150):
        _read_nothing(env)
    with env.memory_bounded(16):
        _read_nothing(env)


def _read_nothing(env: FaultEnvironment) -> None:
    with env.instance("rogue", faulty_engine.command()), contextlib.ExitStack() as clients:
        for _ in range(60):
            client = clients.enter_context(env.connect())
            client.sendall(b"GET /proxy/rogue/rogue/endless-body HTTP/1.1\r\nHost: localhost\r\n\r\n")
            env.journal.count(Outcome.LEFT)
        time.sleep(2)
        assert env.ask("GET", "/proxy/rogue/echo").outcome is Outcome.ANSWERED
        clients.close()
        _no_lease_left(env, "rogue")


def pipeline_and_read_nothing(env: FaultEnvironment) -> None:
    """A client sends requests as long as they are accepted and reads no response."""
    request = _post("/proxy/one/echo", b"x" * 1000)
    with (
        env.memory_bounded(60),
        env.instance("one", fake_engine.command()),
        env.connect() as client,
    ):
        client.settimeout(2)
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 100_000_000:
                sent += client.send(request * 50)
        assert sent < 100_000_000, "requests are served without end although no response is read"
    env.journal.count(Outcome.LEFT)


def pipeline(env: FaultEnvironment) -> None:
    """200 requests in one write: 200 responses in the same order."""
    with env.instance("rogue", faulty_engine.command()), env.connect() as client:
        requests = [_post(f"/proxy/rogue/{number}", b"x" * number) for number in range(200)]
        with ThreadPoolExecutor(1) as pool, client.makefile("rb") as reader:
            sending = pool.submit(client.sendall, b"".join(requests))
            for number in range(200):
                status, answer = read_answer(reader)
                assert status == 200, answer
                assert f'"target": "/{number}"'.encode() in answer, (number, answer)
                env.journal.count(Outcome.ANSWERED)
            sending.result()


def send_a_gigabyte(env: FaultEnvironment) -> None:
    """With a length, it is refused at once; in chunks, at MAX_BODY_MB.

    Only requests by model name are buffered until then, as the name may come last.
    """
    targets = {"/proxy/rogue/echo": 40, "/v1/completions": 40 + 256, "/instances": 40, "/generate": 60}
    with env.instance("rogue", faulty_engine.command()):
        for target, mib in targets.items():
            began = time.monotonic()
            with env.connect() as client, client.makefile("rb") as reader:
                client.sendall(_head(target, _GIB) + b"x" * 1000)
                _refused(env, reader, 413)
            assert time.monotonic() - began < 2
            with env.memory_bounded(mib), env.connect() as client, client.makefile("rb") as reader:
                _pour_chunks(client, target, _GIB)  # discarded for two seconds after the refusal
                _refused(env, reader, 413, 431)
        _no_lease_left(env, "rogue")


def send_as_much_as_is_allowed(env: FaultEnvironment) -> None:
    """250 MB are streamed to the engine and never buffered as a whole."""
    size = 250_000_000
    with (
        env.memory_bounded(40),
        env.instance("rogue", faulty_engine.command()),
        env.connect() as client,
    ):
        client.sendall(_head("/proxy/rogue/echo", size))
        for _ in range(size // 1_000_000):
            client.sendall(b"x" * 1_000_000)
        with client.makefile("rb") as reader:
            status, answer = read_answer(reader)
        assert status == 200, answer
        assert b'"bytes": 250000000' in answer, answer
        env.journal.count(Outcome.ANSWERED)


def send_endless_trailers(env: FaultEnvironment) -> None:
    for pieces in (b"X-Trailer: y\r\n" * 1000, b"x" * 65536):
        with env.memory_bounded(24), env.connect() as client, client.makefile("rb") as reader:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            client.sendall(b"2\r\n{}\r\n0\r\nX-Trailer: ")
            with contextlib.suppress(ConnectionError):
                for _ in range(500):
                    client.sendall(pieces)
            _refused(env, reader, 404, 431, 422, 400, or_closed=True)


def send_endless_heads(env: FaultEnvironment) -> None:
    floods = (b"X: y\r\n" * 1000, b"x" * 65536)
    with env.memory_bounded(24):
        for begin in (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: ", b"GET /", b"G"):
            for flood in floods:
                with env.connect() as client, client.makefile("rb") as reader:
                    with contextlib.suppress(ConnectionError):
                        client.sendall(begin)
                        for _ in range(50):
                            client.sendall(flood)
                    _refused(env, reader, 400, 431, or_closed=True)


def send_noise(env: FaultEnvironment) -> None:
    dice = random.Random(3)
    for _ in range(300):
        noise = dice.randbytes(dice.randint(1, 3000))
        if dice.random() < 0.5:
            noise = b"POST /v1/completions HTTP/1.1\r\n" + noise
        with env.connect() as client, client.makefile("rb") as reader:
            with contextlib.suppress(ConnectionError):
                client.sendall(noise)
                client.shutdown(socket.SHUT_WR)
            _refused(env, reader, 400, 431, or_closed=True)


def thousands_are_slow_or_idle(env: FaultEnvironment) -> None:
    """For a minute, 2,000 idle clients and others with a byte a second; others are served as usual."""
    with (
        env.instance("one", fake_engine.command("--chunk-delay", "0.1")),
        contextlib.ExitStack() as connections,
    ):
        silent = [connections.enter_context(env.connect()) for _ in range(_NUM_IDLE // 2)]
        kept = [connections.enter_context(env.connect()) for _ in range(_NUM_IDLE // 2)]
        for client in kept:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for client in kept:
            with client.makefile("rb") as reader:
                assert read_answer(reader)[0] == 200
            env.journal.count(Outcome.ANSWERED)
        with ThreadPoolExecutor(60) as pool:
            jobs = [pool.submit(_head_by_byte, env) for _ in range(20)]
            jobs += [pool.submit(_body_by_byte, env) for _ in range(20)]
            jobs += [pool.submit(_stalled_body, env) for _ in range(5)]
            jobs += [pool.submit(_read_by_byte, env) for _ in range(5)]
            for _ in range(40):
                reply = env.complete("one", stream=True)
                assert reply.is_done, str(reply)
                assert reply.seconds < 5, reply.seconds
                time.sleep(1)
            for client in silent:
                assert client.recv(1) == b"", "it sent nothing and is still connected"
            for client in kept[:20]:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                with client.makefile("rb") as reader:
                    assert read_answer(reader)[0] == 200
                env.journal.count(Outcome.ANSWERED)
            for job in jobs:
                job.result()


def _head_by_byte(env: FaultEnvironment) -> None:
    with env.connect(_HEAD_TIMEOUT_S + _SLACK_S) as client, client.makefile("rb") as reader:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /v1/models HTTP/1.1\r\nX-Long: " + b"x" * 100:
                client.sendall(bytes([byte]))
                if time.monotonic() - began > _HEAD_TIMEOUT_S:
                    break
                time.sleep(1)
        _refused(env, reader, 408, or_closed=True)
        assert time.monotonic() - began < _HEAD_TIMEOUT_S + _SLACK_S


def _body_by_byte(env: FaultEnvironment) -> None:
    """A slow body that makes progress is served."""
    body = b'{"max_tokens": 4}' + b" " * 20
    with env.connect(_BODY_TIMEOUT_S) as client, client.makefile("rb") as reader:
        client.sendall(_head("/proxy/one/v1/completions", len(body)))
        for byte in body:
            client.sendall(bytes([byte]))
            time.sleep(1)
        status, answer = read_answer(reader)
        assert status == 200, answer
        env.journal.count(Outcome.ANSWERED)


def _stalled_body(env: FaultEnvironment) -> None:
    with env.connect(_BODY_TIMEOUT_S + _SLACK_S) as client, client.makefile("rb") as reader:
        client.sendall(_head("/proxy/one/v1/completions", 1000) + b"{")
        _refused(env, reader, 408)


def _read_by_byte(env: FaultEnvironment) -> None:
    """Read a stream slowly, then the rest at once; nothing may be missing."""
    with env.connect(_BODY_TIMEOUT_S) as client:
        client.sendall(_post("/proxy/one/v1/completions", b'{"stream": true, "max_tokens": 200}'))
        answer = b""
        for _ in range(30):
            answer += client.recv(1)
            time.sleep(1)
        while not answer.endswith(b"0\r\n\r\n"):
            piece = client.recv(65536)
            assert piece, answer[-300:]
            answer += piece
        assert answer.count(b"token") == 200, answer.count(b"token")
        assert b"data: [DONE]" in answer
        env.journal.count(Outcome.ANSWERED)


def _pour_chunks(client: socket.socket, target: str, size: int) -> None:
    """Send as much as is accepted."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    piece = faulty_engine.chunk(b"x" * 1_000_000)
    with contextlib.suppress(ConnectionError):
        for _ in range(size // 1_000_000):
            client.sendall(piece)


def _refused(env: FaultEnvironment, reader: BinaryIO, *statuses: int, or_closed: bool = False) -> None:
    """Expect one of these statuses, or, with `or_closed`, a closed connection."""
    try:
        status, answer = read_answer(reader)
    except (ConnectionError, IndexError):
        assert or_closed, "closed without a response"
        env.journal.count(Outcome.REFUSED)
        return
    env.journal.count(Outcome.REFUSED if b'"error"' in answer else Outcome.LOST, f"{status} {answer!r}")
    assert status in statuses, (status, answer)


SCENARIO = Scenario(
    "clients",
    cases=(
        disconnect_at_any_moment,
        leave_while_the_engine_starts,
        never_read,
        pipeline_and_read_nothing,
        pipeline,
        send_a_gigabyte,
        send_as_much_as_is_allowed,
        send_endless_trailers,
        send_endless_heads,
        send_noise,
        thousands_are_slow_or_idle,
    ),
)
