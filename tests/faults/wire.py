"""Engines whose responses are invalid, incomplete, too long or too slow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable

from tests.faults import faulty_engine
from tests.faults.environment import FaultEnvironment, eventually
from tests.faults.journal import Outcome, Reply
from tests.faults.scenario import Scenario

_MEMORY_MIB = 24.0
_TIMES = 4  # half by GET, half by POST: parts of a response may arrive together or not
_CHAT = {"model": "rogue", "prompt": "x", "stream": True}

# No response can be made from these.
_BAD_HEADS = (
    "nothing",
    "reset",
    "garbage",
    "text",
    "http-0.9",
    "http-2",
    "half-a-head",
    "endless-head",
    "endless-header",
    "endless-interim",
    "status-0",
    "status-999",
    "two-lengths",
    "length-and-chunked",
    "negative-length",
    "split-header",
    "zero-byte-in-header",
)
# These may be detected before or after the response to the client has begun.
_BAD_BODIES = ("endless-chunk-size", "endless-trailer", "endless-trailers", "vast-chunk", "length-too-long")
_GOOD = {
    "no-length": b"until the end",
    "drip-body": b"slowly but surely",
    "drip-head": b"at last",
    "many-headers": b"many",
    "length-too-short": b"hello",
    "body-of-204": b"",
}
_CUT_STREAMS = {
    "cut-events": "engine_disconnected",
    "reset-events": "engine_disconnected",
    "garbage-after-events": "engine_bad_response",
}


def _case(name: str, check: Callable[[FaultEnvironment], None]) -> Callable[[FaultEnvironment], None]:
    """Run `check` with an engine "rogue", which must serve other requests afterwards."""

    def case(env: FaultEnvironment) -> None:
        with env.memory_bounded(_MEMORY_MIB), env.instance("rogue", faulty_engine.command()):
            check(env)
            for number in range(3):
                reply = env.ask("GET", f"/proxy/rogue/echo/{number}")
                assert reply.outcome is Outcome.ANSWERED, str(reply)
                assert json.loads(reply.body)["target"] == f"/echo/{number}", f"another's answer: {reply}"

    case.__name__ = name.replace("-", "_")
    return case


def _replies(env: FaultEnvironment, name: str) -> Iterable[Reply]:
    for number in range(_TIMES):
        if number % 2:
            yield env.ask("POST", f"/proxy/rogue/rogue/{name}", _CHAT)
        else:
            yield env.ask("GET", f"/proxy/rogue/rogue/{name}")


def _bad_head(name: str) -> Callable[[FaultEnvironment], None]:
    def check(env: FaultEnvironment) -> None:
        for reply in _replies(env, name):
            assert reply.status == 502, str(reply)
            assert reply.error["type"] == "upstream_error", str(reply)
            assert reply.seconds < 10

    return _case(name, check)


def _bad_body(name: str) -> Callable[[FaultEnvironment], None]:
    def check(env: FaultEnvironment) -> None:
        for reply in _replies(env, name):
            assert reply.outcome is Outcome.CUT or reply.status == 502, str(reply)
            assert len(reply.body) < 1000, str(reply)
            assert reply.seconds < 10

    return _case(name, check)


def _good(name: str) -> Callable[[FaultEnvironment], None]:
    def check(env: FaultEnvironment) -> None:
        for reply in _replies(env, name):
            assert reply.outcome is Outcome.ANSWERED, str(reply)
            assert reply.body == _GOOD[name], str(reply)
            if name == "drip-body":
                assert reply.first_byte_s < reply.seconds / 2, "it was buffered"

    return _case(name, check)


def _cut_stream(name: str) -> Callable[[FaultEnvironment], None]:
    def check(env: FaultEnvironment) -> None:
        for reply in _replies(env, name):
            assert reply.outcome is Outcome.CUT, str(reply)
            assert reply.body.startswith(faulty_engine.EVENT), str(reply)
            assert reply.code == _CUT_STREAMS[name], str(reply)

    return _case(name, check)


def _drip_events(env: FaultEnvironment) -> None:
    for reply in _replies(env, "drip-events"):
        assert reply.is_done, str(reply)
        assert reply.body.count(faulty_engine.EVENT) == 3, str(reply)


def _silence(env: FaultEnvironment) -> None:
    """Clients give up, and their requests leave nothing behind."""
    for name in ("silence", "half-a-head-and-silence"):
        for number in range(4):
            with env.connect() as client:
                body = b"{}" if number % 2 else b""
                line = f"POST /proxy/rogue/rogue/{name} HTTP/1.1\r\nHost: localhost\r\n"
                client.sendall(line.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                eventually("the request has arrived", lambda: env.record("rogue")["in_flight"] == 1)
            env.journal.count(Outcome.LEFT)
            eventually("the request has ended", lambda: env.record("rogue")["in_flight"] == 0)


def _early_refusal(env: FaultEnvironment) -> None:
    """The engine refuses after the head and disconnects while megabytes are still being sent."""
    for size in (10, 100_000, 20_000_000):
        for _ in range(3):
            reply = env.ask("POST", "/proxy/rogue/rogue/early-refusal", b"x" * size)
            assert reply.status in (400, 502), str(reply)


def _never_reads(env: FaultEnvironment) -> None:
    """The engine reads only the head of an upload: the client's data must not accumulate in Berth.

    The disconnect can't be seen behind unread data: restarting the engine ends the request.
    """
    target = b"POST /proxy/rogue/rogue/never-reads HTTP/1.1\r\nHost: localhost\r\n"
    with env.connect() as client:
        client.sendall(target + b"Content-Length: 200000000\r\n\r\n")
        client.settimeout(1.5)
        sent = 0
        try:
            while sent < 200_000_000:
                sent += client.send(b"x" * 65536)
        except TimeoutError:
            pass
        assert sent < 40_000_000, f"{sent} bytes were taken for an engine that reads none"
    env.journal.count(Outcome.LEFT)
    stopped = env.control("POST", "/instances/rogue/restart?force=true&wait=20")
    assert stopped.outcome is Outcome.ANSWERED, str(stopped)
    env.wait_until("rogue", lambda record: record["status"] == "running" and record["in_flight"] == 0)


def _endless_body(env: FaultEnvironment) -> None:
    """The client reads nothing for a while, or some and disconnects."""
    head = b"GET /proxy/rogue/rogue/endless-body HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with env.connect() as client:
        client.sendall(head)
        time.sleep(1.5)  # the engine is much faster than a client that does not read
    env.journal.count(Outcome.LEFT)
    with env.connect() as client:
        client.sendall(head)
        taken = len(client.recv(12))
        while taken < 50_000_000:
            piece = client.recv(1 << 20)
            assert piece, f"it ends after {taken} bytes"
            taken += len(piece)
    env.journal.count(Outcome.LEFT)
    eventually("no request is left", lambda: env.record("rogue")["in_flight"] == 0)


SCENARIO = Scenario(
    "an engine that answers",
    cases=(
        *map(_bad_head, _BAD_HEADS),
        *map(_bad_body, _BAD_BODIES),
        *map(_good, _GOOD),
        *map(_cut_stream, _CUT_STREAMS),
        _case("drip-events", _drip_events),
        _case("silence", _silence),
        _case("early-refusal", _early_refusal),
        _case("never-reads", _never_reads),
        _case("endless-body", _endless_body),
    ),
)
