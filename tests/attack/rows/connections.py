"""Attacks on connections: broken handshakes, upgrade offers, stalled clients."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator

from tests.attack.attack import Attack, attack
from tests.attack.environment import DEMO, MODEL, AttackEnvironment
from tests.attack.raw_client import say

NEXT_S = 1.0  # within which the next client gets a response, however many are connected
CUT_S = 12.0  # and the next client for capacity that another one blocks; CLIENT_TIMEOUT is 2 s here
WEBSOCKET = (
    "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAA\r\n"


def _head(env: AttackEnvironment, line: str, *lines: str) -> bytes:
    authorization = f"authorization: Bearer {env.attacker_key}\r\n"
    return f"{line} HTTP/1.1\r\nhost: localhost\r\n{authorization}{''.join(lines)}\r\n".encode()


def _handshakes(env: AttackEnvironment) -> dict[str, bytes]:
    target = f"GET /proxy/{DEMO}/v1/realtime"
    return {
        "a line of 9 KB": _head(env, target, WEBSOCKET, f"x: {'x' * 9000}\r\n"),
        "a target of 9 KB": _head(env, f"{target}?{'x' * 9000}", WEBSOCKET),
        "Content-Length": _head(env, target, WEBSOCKET, "content-length: 5\r\n") + b"hello",
        "chunked": _head(env, target, WEBSOCKET, "transfer-encoding: chunked\r\n") + b"0\r\n\r\n",
        "a fragment": _head(env, f"{target}#x", WEBSOCKET),
    }


def _next_clients_wait(env: AttackEnvironment) -> float:
    """How long a new client on its own connection waits."""
    began = time.monotonic()
    reply = env.as_victim("GET", f"/v1/models/{MODEL}", timeout_s=25)
    assert reply.status == 200, f"the next client: {reply}"
    waited = time.monotonic() - began
    env.measurement.notes.append(f"the next client waited {waited * 1000:.0f} ms")
    return waited


@contextlib.contextmanager
def _open_many(env: AttackEnvironment, number: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Many connections that send this and nothing more."""
    clients: list[socket.socket] = []
    try:
        for _ in range(number):
            with contextlib.suppress(OSError):
                clients.append(env.connect(5))
                if data:
                    clients[-1].sendall(data)
        yield clients
    finally:
        for client in clients:
            client.close()


def _invalid_websocket_handshakes(env: AttackEnvironment) -> None:
    handshakes = _handshakes(env)
    with env.measured():
        for name, data in handshakes.items():
            with env.connect() as client:
                status, answer, is_closed = say(client, data, 5)
            env.note(status or "no answer")
            assert status == 400, f"{name}: not 400: {answer[:200]!r}"
            assert is_closed, f"{name}: the connection is kept"


def _websocket_three_hundred(name: str) -> Attack:
    def act(env: AttackEnvironment) -> None:
        data = _handshakes(env)[name]
        with env.measured(), _open_many(env, 300, data):
            waited = _next_clients_wait(env)
        assert waited < NEXT_S, f"the next client waited {waited:.1f} s"

    return Attack(f"300 handshakes with {name}", "nobody", act)


def _flood(name: str, number: int, data: bytes) -> Attack:
    def act(env: AttackEnvironment) -> None:
        with env.measured(), _open_many(env, number, data):
            waits = [_next_clients_wait(env) for _ in range(3)]
        assert max(waits) < NEXT_S, f"the next client waited {max(waits):.1f} s"

    return Attack(name, "nobody", act)


def _an_offer_of_http2_with_a_body(env: AttackEnvironment) -> None:
    """The offer that curl --http2 sends."""
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 1}).encode()
    lines = ("content-type: application/json\r\n", f"content-length: {len(body)}\r\n")
    with env.measured():
        for offer in (H2C, "connection: upgrade\r\nupgrade: TLS/1.0\r\n", "upgrade: h2c\r\n"):
            with env.connect() as client:
                status, answer, _ = say(client, _head(env, "POST /v1/completions", offer, *lines) + body, 8)
            env.note(status or "no answer")
            assert status == 200, f"it is not served: {answer[:200]!r}"


GARBAGE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x00" * 10_000,
    b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000,
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"f" * 20_000,
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"x" * 200_000,
)


def _garbage_instead_of_http(env: AttackEnvironment) -> None:
    with env.measured():
        for data in GARBAGE:
            with env.connect() as client:
                status, answer, _ = say(client, data, 5)
            env.note(status or "closed")
            assert 400 <= status < 500 or not answer, f"{data[:40]!r}: {answer[:200]!r}"


def _bomb(megabyte: bytes) -> bytes:
    """300 of them, compressed; each block is independent, so only one is computed. The checksum is wrong."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * 299 + packer.flush()


def _compressed_bombs(env: AttackEnvironment) -> None:
    """More than MAX_BODY_MB of blanks, or of lists, in one megabyte."""
    blanks, many_lists = _bomb(b" " * (1 << 20)), _bomb(b"[]," * (1 << 18) + b" " * (1 << 18))
    twice = gzip.compress(blanks)
    with env.measured(256 << 20):  # of MAX_BODY_MB
        replies = [
            env.ask("POST", target, body, timeout_s=9, content_encoding=coding)
            for body, coding in ((blanks, "gzip"), (many_lists, "gzip"), (twice, "gzip, gzip"))
            for target in ("/v1/completions", f"/proxy/{DEMO}/v1/completions")
        ]
    odd = [str(one) for one in replies if one.status not in (400, 413, 415)]
    assert not odd, odd[0]


# Attacks on a model with a concurrency limit of 1


def _next_client_gets_the_lease(env: AttackEnvironment, stuck: bytes) -> None:
    """A client holds a model's only lease and stalls; the next client must get it all the same."""
    body = {"model": "limited", "prompt": "x", "max_tokens": 1}
    first = env.as_victim("POST", "/v1/completions", body)
    assert first.status == 200, str(first)
    try:
        with env.measured(), socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", env.port))
            client.sendall(stuck)
            time.sleep(2.5)  # until all buffers on the way are full
            got = env.as_victim("POST", "/v1/completions", body, timeout_s=CUT_S + 8)
    finally:
        env.admin("POST", "/models/limited/stop?force=true")
    env.note(f"the next: {got.status or 'no answer'}")
    env.measurement.notes.append(f"the next client for the lease waited {got.seconds:.1f} s")
    assert got.status == 200, f"the next one: {got}"
    assert got.seconds < CUT_S, f"the next one waited {got.seconds:.1f} s"


def _a_client_that_reads_nothing(env: AttackEnvironment) -> None:
    request = {"model": "limited", "messages": [{"role": "user", "content": "x"}]}
    body = json.dumps(request).encode()
    lines = (f"content-length: {len(body)}\r\n", "content-type: application/json\r\n")
    _next_client_gets_the_lease(env, _head(env, "POST /v1/chat/completions", *lines) + body)


def _a_body_that_never_comes(env: AttackEnvironment) -> None:
    """By the instance: the lease is granted with the head."""
    started = env.as_victim("POST", "/v1/completions", {"model": "limited", "prompt": "x", "max_tokens": 1})
    assert started.status == 200, str(started)
    instances = json.loads(env.admin("GET", "/instances").body)["data"]
    name = next(one["instance_id"] for one in instances if one["instance_id"].startswith("limited"))
    _next_client_gets_the_lease(
        env, _head(env, f"POST /proxy/{name}/v1/completions", "content-length: 9\r\n") + b"x"
    )


def _bodies_that_drip(env: AttackEnvironment) -> None:
    """Fifty clients that send a byte now and then."""
    head = _head(env, "POST /v1/completions", "content-length: 100000\r\n")
    done = threading.Event()

    def drip(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not done.wait(0.2):
                client.sendall(b" ")

    with env.measured(), _open_many(env, 50, head) as clients:
        threads = [threading.Thread(target=drip, args=(one,)) for one in clients]
        for thread in threads:
            thread.start()
        time.sleep(4)
        waited = _next_clients_wait(env)
        done.set()
        for thread in threads:
            thread.join()
    assert waited < NEXT_S, f"the next client waited {waited:.1f} s"


ATTACKS: tuple[Attack, ...] = (
    attack("nobody", _invalid_websocket_handshakes),
    _websocket_three_hundred("a line of 9 KB"),
    _websocket_three_hundred("Content-Length"),
    attack("nobody", _an_offer_of_http2_with_a_body),
    attack("nobody", _garbage_instead_of_http),
    _flood("5,000 idle connections", 5000, b""),
    _flood("300 heads without an end", 300, b"GET / HTTP/1.1\r\nhost: x\r\nx-a: "),
    _flood(
        "300 requests without their bodies",
        300,
        b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
    ),
    attack("nobody", _compressed_bombs),
    attack("key", _a_client_that_reads_nothing),
    attack("key", _a_body_that_never_comes),
    attack("key", _bodies_that_drip),
)
# With the settings of `AttackGroup("few connections")`: 250 connections at once.


def _pages_of_other_sites(env: AttackEnvironment) -> None:
    """No keys, and a browser on this machine: an image, a frame, a form of another site's page."""
    sites = (
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "https://evil.example"},
    )
    targets = (
        ("GET", "/v1/completions?model=cold"), ("GET", "/v1/models"), ("POST", "/models/cold/start"),
        ("POST", "/v1/completions?model=cold"), ("GET", "/instances"), ("DELETE", f"/instances/{DEMO}"),
        ("POST", f"/proxy/{DEMO}/v1/completions"), ("GET", f"/proxy/{DEMO}/v1/models"),
    )  # fmt: skip
    with env.measured():
        for headers in sites:
            for method, target in targets:
                body = b"{}" if method == "POST" else None
                reply = env.ask(method, target, body, timeout_s=8, **headers)
                assert reply.status == 403, f"{method} {target} {headers}: {reply}"
        rebound = env.ask("GET", "/instances", host="evil.example")
        forwarded = env.ask("GET", "/instances", x_forwarded_for="192.0.2.1")
        image = env.ask("GET", "/v1/completions?model=cold", timeout_s=8)
    assert rebound.status == forwarded.status == 403, f"{rebound} {forwarded}"
    assert image.status >= 400, f"a GET is answered: {image}"
    assert b"cold" not in env.admin("GET", "/instances?all=true").body, "it was started"


WITHOUT_KEYS: tuple[Attack, ...] = (attack("a web page", _pages_of_other_sites),)
FEW_CONNECTIONS: tuple[Attack, ...] = (
    _flood("2,000 idle connections for 250", 2000, b""),
    _flood("600 heads without an end for 250", 600, b"GET / HTTP/1.1\r\nhost: x\r\nx-a: "),
    _websocket_three_hundred("a line of 9 KB"),
    _websocket_three_hundred("Content-Length"),
)
