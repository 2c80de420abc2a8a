"""Hostile engines: their responses to probes, handshakes and requests."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.attack import hostile_engine
from tests.attack.attack import Attack, attack
from tests.attack.environment import MODEL, AttackEnvironment
from tests.attack.raw_client import say
from tests.attack.rows.connections import WEBSOCKET
from tests.faults.environment import eventually

BERTHS_FAULT = b"in Berth itself"
_MOST_READ = 64 << 20  # bytes of an endless response, by the client


def _start(path: str, behaviour: str) -> Attack:
    """The engine is blamed, and nothing is read without a limit."""

    def act(env: AttackEnvironment) -> None:
        command = hostile_engine.command("--on", f"{path}={behaviour}")
        with env.measured(), env.instance("hostile", command, wait_s=6) as made:
            env.note(made.status)
            assert made.status != 500 and BERTHS_FAULT not in made.body, f"Berth blames itself: {made}"
            is_running = made.status == 201 and json.loads(made.body)["status"] == "running"
            # For a `command`, /v1/models is not checked.
            assert not is_running or path != "/health", f"it is taken for healthy: {made}"
            assert len(made.body) < 5000, f"a long record: {len(made.body)} bytes"
            listed = env.ask("GET", "/v1/models")
            assert listed.status == 200, str(listed)

    return Attack(f"{behaviour} at {path}", "engine", act)


def _running(path: str, behaviour: str, first: int = 2) -> Attack:
    """It starts correctly, and then responds to probes like this."""

    def act(env: AttackEnvironment) -> None:
        flags = ("--on", f"{path}={behaviour}", "--first", str(first))
        with env.measured(), env.instance("hostile", hostile_engine.command(*flags)) as made:
            env.note(made.status)
            assert made.status == 201, str(made)
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                found = env.admin("GET", "/instances/hostile", timeout_s=10)
                assert BERTHS_FAULT not in found.body, f"Berth blames itself: {found}"
                time.sleep(0.2)

    return Attack(f"{behaviour} at {path} while it runs", "engine", act)


def _metrics(behaviour: str) -> Attack:
    def act(env: AttackEnvironment) -> None:
        flags = ("--on", f"/metrics={behaviour}")
        with env.measured(), env.instance("hostile", hostile_engine.command(*flags)) as made:
            assert made.status == 201, str(made)
            pages = [env.admin("GET", "/metrics", timeout_s=12) for _ in range(3)]
        for page in pages:
            env.note(page.status)
            assert page.status == 200 and not page.broken, str(page)
            assert len(page.body) < 2 << 20, f"a page of {len(page.body)} bytes"
            bad = [line for line in page.body.decode().splitlines() if line and not _is_sample(line)]
            assert not bad, f"a line that no scraper reads: {bad[0][:100]}"

    return Attack(f"metrics: {behaviour}", "engine", act)


def _is_sample(line: str) -> bool:
    if line.startswith("#"):
        return True
    try:
        float(line.rsplit(" ", 1)[1])
    except (ValueError, IndexError):
        return False
    return True


@contextmanager
def _listener() -> Iterator[tuple[int, list[bytes]]]:
    """The target of redirects: a port, and the data received there."""
    came: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.settimeout(1)
            try:
                came.append(connection.recv(4096))
            except OSError:
                came.append(b"a connection")
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield server.getsockname()[1], came
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def _a_redirect_of_a_handshake_and_of_requests(env: AttackEnvironment) -> None:
    with _listener() as (port, came):
        location = f"http://127.0.0.1:{port}/stolen"
        flags = ("--on", "/v1/realtime=redirect", "--on", "/v1/completions=redirect", "--location", location)
        with env.instance("hostile", hostile_engine.command(*flags)) as made:
            assert made.status == 201, str(made)
            head = (
                f"GET /proxy/hostile/v1/realtime HTTP/1.1\r\nhost: localhost\r\n"
                f"authorization: Bearer {env.attacker_key}\r\n{WEBSOCKET}\r\n"
            )
            with env.measured():
                with env.connect() as client:
                    status, answer, _ = say(client, head.encode(), 6)
                env.note(status or "no answer")
                reply = env.ask("POST", "/proxy/hostile/v1/completions", {"prompt": "x"}, timeout_s=8)
                time.sleep(0.3)
    assert not came, f"it was followed: {came[0][:300]!r}"
    assert status in (302, 502), f"{status}: {answer[:200]!r}"
    assert reply.status in (302, 502), str(reply)


def _probes_that_are_redirected(env: AttackEnvironment) -> None:
    with _listener() as (port, came), env.measured():
        for path in ("/health", "/v1/models", "/metrics"):
            flags = ("--on", f"{path}=redirect", "--location", f"http://127.0.0.1:{port}/stolen")
            with env.instance("hostile", hostile_engine.command(*flags), wait_s=3):
                env.admin("GET", "/metrics")
    assert not came, f"it was followed: {came[0][:300]!r}"


def _600_mb_of_json_for_a_stream(env: AttackEnvironment) -> None:
    """After a slow start, so that the stream has begun before the engine responds."""
    flags = ("--slow-start", "1.5", "--on", "/v1/chat/completions=huge-json")
    slow = {"hostile": {"command": hostile_engine.command(*flags)}}
    env.write_catalog({**env.catalog, **slow})
    assert env.admin("POST", "/reload").status == 200
    body = {"model": "hostile", "messages": [{"role": "user", "content": "x"}], "stream": True}
    try:
        with env.measured():
            reply = env.ask("POST", "/v1/chat/completions", body, timeout_s=20)
    finally:
        env.admin("POST", "/models/hostile/stop?force=true")
        env.write_catalog(env.catalog)
        env.admin("POST", "/reload")
    assert reply.status == 200, str(reply)
    assert len(reply.body) < 8 << 20, f"{len(reply.body) >> 20} MiB are passed on as one event"
    assert b'"error"' in reply.body, f"no error event: {reply}"


def _answers_without_end_to_a_client_that_leaves(env: AttackEnvironment) -> None:
    flags = ("--on", "/v1/completions=endless", "--on", "/v1/chat/completions=one-endless-event")
    with env.instance("hostile", hostile_engine.command(*flags)) as made:
        assert made.status == 201, str(made)
        with env.measured():
            for path in ("/v1/completions", "/v1/chat/completions"):
                body = json.dumps({"model": MODEL, "prompt": "x", "stream": True}).encode()
                head = (
                    f"POST /proxy/hostile{path} HTTP/1.1\r\nhost: localhost\r\n"
                    f"authorization: Bearer {env.attacker_key}\r\ncontent-length: {len(body)}\r\n\r\n"
                )
                with env.connect() as client:
                    client.sendall(head.encode() + body)
                    num_read = 0
                    while num_read < _MOST_READ and (piece := client.recv(1 << 20)):
                        num_read += len(piece)
                    time.sleep(1.0)  # it reads no more
                env.note(f"{num_read >> 20} MiB read")
        eventually("nothing is in flight", lambda: _in_flight(env) == 0, 8)


def _in_flight(env: AttackEnvironment) -> int:
    return int(json.loads(env.admin("GET", "/instances/hostile").body)["in_flight"])


ATTACKS: tuple[Attack, ...] = (
    *(_start("/health", one) for one in ("huge", "gzip-bomb", "drip", "endless-head")),
    *(_start("/v1/models", one) for one in ("huge", "endless", "gzip-bomb", "nested")),
    _running("/health", "huge"),
    _running("/health", "drip"),
    _running("/metrics", "huge", 0),
    _running("/metrics", "nested", 0),
    *(_metrics(one) for one in ("huge", "gzip-bomb", "no-numbers", "endless-head")),
    attack("engine", _a_redirect_of_a_handshake_and_of_requests),
    attack("engine", _probes_that_are_redirected),
    attack("engine", _600_mb_of_json_for_a_stream),
    attack("engine", _answers_without_end_to_a_client_that_leaves),
)
