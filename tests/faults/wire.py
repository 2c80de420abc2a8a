"""Engines that answer what is no HTTP, too little of it, too much, or too slowly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable

from tests.faults import faulty_engine as rogue_engine
from tests.faults.environment import Harbour, eventually
from tests.faults.journal import Fate, Reply
from tests.faults.scenario import Scene

_MEMORY_MIB = 24.0
_TIMES = 4  # each by GET and by POST: of an answer in pieces, these can come together or not
_CHAT = {"model": "rogue", "prompt": "x", "stream": True}

# No answer can be made of these.
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
# These may be found out before the answer has begun for the client, or after.
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


def _case(name: str, check: Callable[[Harbour], None]) -> Callable[[Harbour], None]:
    """`check` with an engine "rogue", which still serves others well afterwards."""

    def case(harbour: Harbour) -> None:
        with harbour.memory_bounded(_MEMORY_MIB), harbour.instance("rogue", rogue_engine.command()):
            check(harbour)
            for number in range(3):
                reply = harbour.ask("GET", f"/proxy/rogue/echo/{number}")
                assert reply.fate is Fate.ANSWERED, str(reply)
                assert json.loads(reply.body)["target"] == f"/echo/{number}", f"another's answer: {reply}"

    case.__name__ = name.replace("-", "_")
    return case


def _replies(harbour: Harbour, name: str) -> Iterable[Reply]:
    for number in range(_TIMES):
        if number % 2:
            yield harbour.ask("POST", f"/proxy/rogue/rogue/{name}", _CHAT)
        else:
            yield harbour.ask("GET", f"/proxy/rogue/rogue/{name}")


def _bad_head(name: str) -> Callable[[Harbour], None]:
    def check(harbour: Harbour) -> None:
        for reply in _replies(harbour, name):
            assert reply.status == 502, str(reply)
            assert reply.error["type"] == "upstream_error", str(reply)
            assert reply.seconds < 10

    return _case(name, check)


def _bad_body(name: str) -> Callable[[Harbour], None]:
    def check(harbour: Harbour) -> None:
        for reply in _replies(harbour, name):
            assert reply.fate is Fate.CUT or reply.status == 502, str(reply)
            assert len(reply.body) < 1000, str(reply)
            assert reply.seconds < 10

    return _case(name, check)


def _good(name: str) -> Callable[[Harbour], None]:
    def check(harbour: Harbour) -> None:
        for reply in _replies(harbour, name):
            assert reply.fate is Fate.ANSWERED, str(reply)
            assert reply.body == _GOOD[name], str(reply)
            if name == "drip-body":
                assert reply.first_byte_s < reply.seconds / 2, "it was held back"

    return _case(name, check)


def _cut_stream(name: str) -> Callable[[Harbour], None]:
    def check(harbour: Harbour) -> None:
        for reply in _replies(harbour, name):
            assert reply.fate is Fate.CUT, str(reply)
            assert reply.body.startswith(rogue_engine.EVENT), str(reply)
            assert reply.code == _CUT_STREAMS[name], str(reply)

    return _case(name, check)


def _drip_events(harbour: Harbour) -> None:
    for reply in _replies(harbour, "drip-events"):
        assert reply.is_done, str(reply)
        assert reply.body.count(rogue_engine.EVENT) == 3, str(reply)


def _silence(harbour: Harbour) -> None:
    """Clients lose their patience, and their requests leave nothing behind."""
    for name in ("silence", "half-a-head-and-silence"):
        for number in range(4):
            with harbour.connect() as client:
                body = b"{}" if number % 2 else b""
                line = f"POST /proxy/rogue/rogue/{name} HTTP/1.1\r\nHost: localhost\r\n"
                client.sendall(line.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                eventually("it has arrived", lambda: harbour.record("rogue")["in_flight"] == 1)
            harbour.ledger.count(Fate.LEFT)
            eventually("it is gone", lambda: harbour.record("rogue")["in_flight"] == 0)


def _early_refusal(harbour: Harbour) -> None:
    """The engine refuses after the head and hangs up, while megabytes are still on their way."""
    for size in (10, 100_000, 20_000_000):
        for _ in range(3):
            reply = harbour.ask("POST", "/proxy/rogue/rogue/early-refusal", b"x" * size)
            assert reply.status in (400, 502), str(reply)


def _never_reads(harbour: Harbour) -> None:
    """It takes the head of an upload and no more: what the client sends must not pile up in Berth.

    That the client has left can't be heard behind what it has sent: the stop of the engine ends the request.
    """
    target = b"POST /proxy/rogue/rogue/never-reads HTTP/1.1\r\nHost: localhost\r\n"
    with harbour.connect() as client:
        client.sendall(target + b"Content-Length: 200000000\r\n\r\n")
        client.settimeout(1.5)
        sent = 0
        try:
            while sent < 200_000_000:
                sent += client.send(b"x" * 65536)
        except TimeoutError:
            pass
        assert sent < 40_000_000, f"{sent} bytes were taken for an engine that reads none"
    harbour.ledger.count(Fate.LEFT)
    stopped = harbour.control("POST", "/instances/rogue/restart?force=true&wait=20")
    assert stopped.fate is Fate.ANSWERED, str(stopped)
    harbour.until("rogue", lambda record: record["status"] == "running" and record["in_flight"] == 0)


def _endless_body(harbour: Harbour) -> None:
    """As much as the client wants: it takes some and leaves, or takes all; or reads nothing for a while."""
    head = b"GET /proxy/rogue/rogue/endless-body HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with harbour.connect() as client:
        client.sendall(head)
        time.sleep(1.5)  # the engine is much faster than a client that does not read
    harbour.ledger.count(Fate.LEFT)
    with harbour.connect() as client:
        client.sendall(head)
        taken = len(client.recv(12))
        while taken < 50_000_000:
            piece = client.recv(1 << 20)
            assert piece, f"it ends after {taken} bytes"
            taken += len(piece)
    harbour.ledger.count(Fate.LEFT)
    eventually("no request is left", lambda: harbour.record("rogue")["in_flight"] == 0)


SCENE = Scene(
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
