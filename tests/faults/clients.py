"""Clients that leave, never read, are slow, send too much, or too many things at once."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from tests import fake_engine
from tests.faults import faulty_engine as rogue_engine
from tests.faults.environment import Harbour, eventually
from tests.faults.journal import Fate
from tests.faults.scenario import Scene
from tests.faults.smuggling import read_answer

_GIB = 1 << 30
_NUM_VANISHING = 300
_NUM_IDLE = 2000
_HEAD_TIMEOUT_S = 30
_BODY_TIMEOUT_S = 60
_SLACK_S = 6


def _post(target: str, body: bytes) -> bytes:
    return _head(target, len(body)) + body


def _head(target: str, length: int) -> bytes:
    line = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{line}Content-Length: {length}\r\n\r\n".encode()


def _no_lease_left(harbour: Harbour, name: str) -> None:
    eventually("no request is left", lambda: harbour.record(name)["in_flight"] == 0)


def vanish_at_any_moment(harbour: Harbour) -> None:
    """By FIN or RST: before the head's end, in the body, before the answer, in the stream, at its end."""
    bodies = (
        b'{"stream": true, "max_tokens": 1000}',
        b'{"stream": true, "max_tokens": 3}',
        b'{"delay": 1}',
        b"{}",
    )
    with harbour.instance("one", fake_engine.command("--chunk-delay", "0.02")):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda seed: _vanish(harbour, random.Random(seed), bodies), range(_NUM_VANISHING)))
        _no_lease_left(harbour, "one")
        assert harbour.complete("one", stream=True).is_done


def _vanish(harbour: Harbour, dice: random.Random, bodies: tuple[bytes, ...]) -> None:
    request = _post("/proxy/one/v1/completions", dice.choice(bodies))
    is_whole = dice.random() < 0.7
    with harbour.connect() as client:
        client.sendall(request if is_whole else request[: dice.randrange(len(request))])
        if is_whole and dice.random() < 0.6:
            client.recv(dice.choice((1, 50, 5000)))
        time.sleep(dice.choice((0, 0.001, 0.06, 0.2)))
        if dice.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    harbour.ledger.count(Fate.LEFT)


def leave_while_the_engine_starts(harbour: Harbour) -> None:
    with harbour.instance("one", fake_engine.command("--slow-start", "2"), wait_s=0):
        for _ in range(50):
            with harbour.connect() as client:
                client.sendall(_post("/proxy/one/v1/completions", b"{}"))
            harbour.ledger.count(Fate.LEFT)
        assert harbour.complete("one").fate is Fate.ANSWERED
        _no_lease_left(harbour, "one")


def never_read(harbour: Harbour) -> None:
    """60 of them ask for 192 MiB each: what they don't take stays with the engine. Twice: nothing adds up."""
    with harbour.memory_bounded(150):
        _read_nothing(harbour)
    with harbour.memory_bounded(16):
        _read_nothing(harbour)


def _read_nothing(harbour: Harbour) -> None:
    with harbour.instance("rogue", rogue_engine.command()), contextlib.ExitStack() as clients:
        for _ in range(60):
            client = clients.enter_context(harbour.connect())
            client.sendall(b"GET /proxy/rogue/rogue/endless-body HTTP/1.1\r\nHost: localhost\r\n\r\n")
            harbour.ledger.count(Fate.LEFT)
        time.sleep(2)
        assert harbour.ask("GET", "/proxy/rogue/echo").fate is Fate.ANSWERED
        clients.close()
        _no_lease_left(harbour, "rogue")


def pipeline_and_read_nothing(harbour: Harbour) -> None:
    """One client sends requests for as long as they are taken, and takes no answer."""
    request = _post("/proxy/one/echo", b"x" * 1000)
    with (
        harbour.memory_bounded(60),
        harbour.instance("one", fake_engine.command()),
        harbour.connect() as client,
    ):
        client.settimeout(2)
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 100_000_000:
                sent += client.send(request * 50)
        assert sent < 100_000_000, "what nobody reads is answered for ever"
    harbour.ledger.count(Fate.LEFT)


def pipeline(harbour: Harbour) -> None:
    """200 requests in one piece: 200 answers in their order."""
    with harbour.instance("rogue", rogue_engine.command()), harbour.connect() as client:
        requests = [_post(f"/proxy/rogue/{number}", b"x" * number) for number in range(200)]
        with ThreadPoolExecutor(1) as pool, client.makefile("rb") as reader:
            sending = pool.submit(client.sendall, b"".join(requests))
            for number in range(200):
                status, answer = read_answer(reader)
                assert status == 200, answer
                assert f'"target": "/{number}"'.encode() in answer, (number, answer)
                harbour.ledger.count(Fate.ANSWERED)
            sending.result()


def send_a_gigabyte(harbour: Harbour) -> None:
    """Announced: refused at once. In chunks: refused at MAX_BODY_MB.

    Only what is asked for by name is kept until then, as the name may be at its end.
    """
    targets = {"/proxy/rogue/echo": 40, "/v1/completions": 40 + 256, "/instances": 40, "/generate": 60}
    with harbour.instance("rogue", rogue_engine.command()):
        for target, mib in targets.items():
            began = time.monotonic()
            with harbour.connect() as client, client.makefile("rb") as reader:
                client.sendall(_head(target, _GIB) + b"x" * 1000)
                _refused(harbour, reader, 413)
            assert time.monotonic() - began < 2
            with harbour.memory_bounded(mib), harbour.connect() as client, client.makefile("rb") as reader:
                _pour_chunks(client, target, _GIB)  # after the refusal it is thrown away, for two seconds
                _refused(harbour, reader, 413, 431)
        _no_lease_left(harbour, "rogue")


def send_as_much_as_is_allowed(harbour: Harbour) -> None:
    """250 MB pass through to the engine, and are never all in Berth."""
    size = 250_000_000
    with (
        harbour.memory_bounded(40),
        harbour.instance("rogue", rogue_engine.command()),
        harbour.connect() as client,
    ):
        client.sendall(_head("/proxy/rogue/echo", size))
        for _ in range(size // 1_000_000):
            client.sendall(b"x" * 1_000_000)
        with client.makefile("rb") as reader:
            status, answer = read_answer(reader)
        assert status == 200, answer
        assert b'"bytes": 250000000' in answer, answer
        harbour.ledger.count(Fate.ANSWERED)


def send_trailers_without_end(harbour: Harbour) -> None:
    for pieces in (b"X-Trailer: y\r\n" * 1000, b"x" * 65536):
        with harbour.memory_bounded(24), harbour.connect() as client, client.makefile("rb") as reader:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            client.sendall(b"2\r\n{}\r\n0\r\nX-Trailer: ")
            with contextlib.suppress(ConnectionError):
                for _ in range(500):
                    client.sendall(pieces)
            _refused(harbour, reader, 404, 431, 422, 400, or_closed=True)


def send_heads_without_end(harbour: Harbour) -> None:
    floods = (b"X: y\r\n" * 1000, b"x" * 65536)
    with harbour.memory_bounded(24):
        for begin in (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: ", b"GET /", b"G"):
            for flood in floods:
                with harbour.connect() as client, client.makefile("rb") as reader:
                    with contextlib.suppress(ConnectionError):
                        client.sendall(begin)
                        for _ in range(50):
                            client.sendall(flood)
                    _refused(harbour, reader, 400, 431, or_closed=True)


def send_noise(harbour: Harbour) -> None:
    dice = random.Random(3)
    for _ in range(300):
        noise = dice.randbytes(dice.randint(1, 3000))
        if dice.random() < 0.5:
            noise = b"POST /v1/completions HTTP/1.1\r\n" + noise
        with harbour.connect() as client, client.makefile("rb") as reader:
            with contextlib.suppress(ConnectionError):
                client.sendall(noise)
                client.shutdown(socket.SHUT_WR)
            _refused(harbour, reader, 400, 431, or_closed=True)


def are_slow_or_idle_by_the_thousand(harbour: Harbour) -> None:
    """For a minute: 2,000 idle ones, others with a byte a second; meanwhile all others are served as ever."""
    with harbour.instance("one", fake_engine.command("--chunk-delay", "0.1")), contextlib.ExitStack() as held:
        silent = [held.enter_context(harbour.connect()) for _ in range(_NUM_IDLE // 2)]
        kept = [held.enter_context(harbour.connect()) for _ in range(_NUM_IDLE // 2)]
        for client in kept:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for client in kept:
            with client.makefile("rb") as reader:
                assert read_answer(reader)[0] == 200
            harbour.ledger.count(Fate.ANSWERED)
        with ThreadPoolExecutor(60) as pool:
            jobs = [pool.submit(_head_by_byte, harbour) for _ in range(20)]
            jobs += [pool.submit(_body_by_byte, harbour) for _ in range(20)]
            jobs += [pool.submit(_body_that_stands_still, harbour) for _ in range(5)]
            jobs += [pool.submit(_read_by_byte, harbour) for _ in range(5)]
            for _ in range(40):
                reply = harbour.complete("one", stream=True)
                assert reply.is_done, str(reply)
                assert reply.seconds < 5, reply.seconds
                time.sleep(1)
            for client in silent:
                assert client.recv(1) == b"", "it never said a word and is still connected"
            for client in kept[:20]:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                with client.makefile("rb") as reader:
                    assert read_answer(reader)[0] == 200
                harbour.ledger.count(Fate.ANSWERED)
            for job in jobs:
                job.result()


def _head_by_byte(harbour: Harbour) -> None:
    with harbour.connect(_HEAD_TIMEOUT_S + _SLACK_S) as client, client.makefile("rb") as reader:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /v1/models HTTP/1.1\r\nX-Long: " + b"x" * 100:
                client.sendall(bytes([byte]))
                if time.monotonic() - began > _HEAD_TIMEOUT_S:
                    break
                time.sleep(1)
        _refused(harbour, reader, 408, or_closed=True)
        assert time.monotonic() - began < _HEAD_TIMEOUT_S + _SLACK_S


def _body_by_byte(harbour: Harbour) -> None:
    """Slow, but it goes on: served."""
    body = b'{"max_tokens": 4}' + b" " * 20
    with harbour.connect(_BODY_TIMEOUT_S) as client, client.makefile("rb") as reader:
        client.sendall(_head("/proxy/one/v1/completions", len(body)))
        for byte in body:
            client.sendall(bytes([byte]))
            time.sleep(1)
        status, answer = read_answer(reader)
        assert status == 200, answer
        harbour.ledger.count(Fate.ANSWERED)


def _body_that_stands_still(harbour: Harbour) -> None:
    with harbour.connect(_BODY_TIMEOUT_S + _SLACK_S) as client, client.makefile("rb") as reader:
        client.sendall(_head("/proxy/one/v1/completions", 1000) + b"{")
        _refused(harbour, reader, 408)


def _read_by_byte(harbour: Harbour) -> None:
    """Of a stream; the rest at once in the end, and nothing is missing."""
    with harbour.connect(_BODY_TIMEOUT_S) as client:
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
        harbour.ledger.count(Fate.ANSWERED)


def _pour_chunks(client: socket.socket, target: str, size: int) -> None:
    """As far as it is taken."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    piece = rogue_engine.chunk(b"x" * 1_000_000)
    with contextlib.suppress(ConnectionError):
        for _ in range(size // 1_000_000):
            client.sendall(piece)


def _refused(harbour: Harbour, reader: BinaryIO, *statuses: int, or_closed: bool = False) -> None:
    """An answer with one of these, and the end of the connection; where allowed, that alone."""
    try:
        status, answer = read_answer(reader)
    except (ConnectionError, IndexError):
        assert or_closed, "closed without a word"
        harbour.ledger.count(Fate.REFUSED)
        return
    harbour.ledger.count(Fate.REFUSED if b'"error"' in answer else Fate.LOST, f"{status} {answer!r}")
    assert status in statuses, (status, answer)


SCENE = Scene(
    "clients",
    cases=(
        vanish_at_any_moment,
        leave_while_the_engine_starts,
        never_read,
        pipeline_and_read_nothing,
        pipeline,
        send_a_gigabyte,
        send_as_much_as_is_allowed,
        send_trailers_without_end,
        send_heads_without_end,
        send_noise,
        are_slow_or_idle_by_the_thousand,
    ),
)
