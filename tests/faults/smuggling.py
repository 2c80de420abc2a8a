"""Ambiguous requests, sent through Berth to an engine that records every byte."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h11

from tests.faults import faulty_engine
from tests.faults.environment import FaultEnvironment
from tests.faults.journal import Outcome
from tests.faults.scenario import Scenario

EVIL = b"GET /proxy/rogue/evil HTTP/1.1\r\nHost: localhost\r\n\r\n"
_READ_S = 2.0
_CHUNKED = b"Transfer-Encoding: chunked"
_CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Trick:
    """Header `lines`, then `body`. If `refused`, it must not reach the engine as a complete request."""

    lines: Sequence[bytes]
    body: bytes = b""
    refused: bool = True
    method: bytes = b"POST"
    version: bytes = b"HTTP/1.1"


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


_HIDDEN = b"0\r\n\r\n" + EVIL  # an empty body and a request, or a body of this length

LENGTHS = (
    Trick((b"Content-Length: 5", _length(b"hello" + EVIL)), b"hello" + EVIL),
    Trick((_length(b"hello" + EVIL), b"Content-Length: 5"), b"hello" + EVIL),
    Trick((b"Content-Length: 5", b"Content-Length: 5"), b"hello"),
    Trick((b"Content-Length: 5, 5",), b"hello"),
    Trick((b"Content-Length: +5",), b"hello"),
    Trick((b"Content-Length: -5",), b"hello"),
    Trick((b"Content-Length: 0x5",), b"hello"),
    Trick((b"Content-Length: 5a",), b"hello"),
    Trick((b"Content-Length: 1 0",), b"hello"),
    Trick((b"Content-Length:",), b""),
    Trick((b"Content-Length: 99999999999999999999999",), b"hello"),
    Trick((b"Content-Length: 18446744073709551621",), b"hello"),
    Trick((b"Content-Length : 5",), b"hello"),
    Trick((b" Content-Length: 5",), b"hello"),
    Trick((b"X: y\r\n Content-Length: 5",), b"hello"),
    Trick((b"Content-Length:\x0b5",), b"hello"),
    Trick((b"Content-Length: 5\x00",), b"hello"),
    Trick((b"Content-Length\x00: 5",), b"hello"),
    Trick((b"Content_Length: 5", _length(EVIL)), EVIL, refused=False),
    Trick((b"Connection: content-length", _length(EVIL)), EVIL, refused=False),
    Trick((b"Connection: close, content-length", _length(EVIL)), EVIL, refused=False),
    Trick((_length(EVIL),), EVIL, refused=False, method=b"GET"),
    Trick((_length(EVIL),), EVIL, refused=False, method=b"DELETE"),
    Trick((_length(EVIL), b"Expect: 100-continue"), EVIL, refused=False),
    Trick((_length(EVIL),), EVIL, refused=False, version=b"HTTP/1.0"),
)

CODINGS = (
    Trick((_length(_HIDDEN), _CHUNKED), _HIDDEN),
    Trick((_CHUNKED, _length(_HIDDEN)), _HIDDEN),
    Trick((b"Content-Length: 0", _CHUNKED), _CHUNKS),
    Trick((b"Transfer-Encoding: xchunked",), _CHUNKS),
    Trick((b"Transfer-Encoding: chunked, identity",), _CHUNKS),
    Trick((b"Transfer-Encoding: chunked;x=1",), _CHUNKS),
    Trick((b"Transfer-Encoding : chunked",), _CHUNKS),
    Trick((b"Transfer-Encoding: chunked\x00",), _CHUNKS),
    Trick((b"Transfer-Encoding:\x0bchunked",), _CHUNKS),
    Trick((b"Transfer-Encoding:\r\n chunked",), _CHUNKS),
    Trick((b"X: y\r\n Transfer-Encoding: chunked",), _CHUNKS),
    Trick((b"X: y\nTransfer-Encoding: chunked",), _CHUNKS),
    Trick((b"X: y\rTransfer-Encoding: chunked",), _CHUNKS),
    Trick((b'Transfer-Encoding: "chunked"',), _CHUNKS),
    Trick((b"Transfer-Encoding: identity", _length(_HIDDEN)), _HIDDEN),
    Trick((_CHUNKED, b"Transfer-Encoding: identity"), _CHUNKS),
    Trick((b"Transfer-Encoding: identity", _CHUNKED), _CHUNKS, refused=False),
    Trick((_CHUNKED, _CHUNKED), _CHUNKS, refused=False),
    Trick((b"transfer-encoding: CHUNKED",), _CHUNKS, refused=False),
    Trick((b"Transfer-Encoding:\tchunked",), _CHUNKS, refused=False),
    Trick((b"Connection: transfer-encoding", _CHUNKED), _CHUNKS, refused=False),
    Trick((_CHUNKED,), _CHUNKS, refused=False, version=b"HTTP/1.0"),
    Trick((b"Transfer_Encoding: chunked", _length(_HIDDEN)), _HIDDEN, refused=False),
    Trick((b"TE: trailers, chunked", _length(_HIDDEN)), _HIDDEN, refused=False),
)

CHUNKS = tuple(
    Trick((_CHUNKED,), body, refused)
    for body, refused in (
        (b"5\nhello\n0\n\n", True),
        (b"5\r\nhello0\r\n\r\n", True),
        (b"5\r\nhelloX\r\n0\r\n\r\n", True),
        (b"+5\r\nhello\r\n0\r\n\r\n", True),
        (b"-5\r\nhello\r\n0\r\n\r\n", True),
        (b"0x5\r\nhello\r\n0\r\n\r\n", True),
        (b"5_\r\nhello\r\n0\r\n\r\n", True),
        (b"\r\nhello\r\n0\r\n\r\n", True),
        (b"fffffffffffffffff5\r\nhello\r\n0\r\n\r\n", True),
        (b"5;a\nb\r\nhello\r\n0\r\n\r\n", True),
        (b"5\rX\nhello\r\n0\r\n\r\n", True),
        (b"5\r\nhello\r\n0\r\nX: y\n\r\n", True),
        (b"5;name=value\r\nhello\r\n0\r\n\r\n", False),
        (b"00000005\r\nhello\r\n000\r\n\r\n", False),
        (b"5\r\nhello\r\n0\r\nContent-Length: 77\r\nTransfer-Encoding: x\r\nHost: evil\r\n\r\n", False),
        (b"5\r\nhello\r\n0\r\nAuthorization: Bearer evil\r\nX-Evil: evil\r\n\r\n", False),
    )
)

HEADS = (
    Trick((b"X: a\x00b",), method=b"GET"),
    Trick((b"X: a\rb",), method=b"GET"),
    Trick((b"X: a\nGET /proxy/rogue/evil HTTP/1.1",), method=b"GET"),
    Trick((b"X: a\r\n folded",), method=b"GET"),
    Trick((b"X Y: a",), method=b"GET"),
    Trick((b"no colon",), method=b"GET"),
    Trick((b": no name",), method=b"GET"),
    Trick((b"X\xff: a",), method=b"GET"),
    Trick((), method=b"GET", version=b"HTTP/1.1 "),
    Trick((), method=b"GET", version=b"HTTP/9.9"),
    Trick((), method=b"GET", version=b"HTTP/2.0"),
    Trick((), method=b"GE T"),
    Trick((), method=b"\x16\x03\x01"),
    Trick((b"X: \xff\xfe\x80",), method=b"GET", refused=False),
    Trick((b"X-Request-Id: a\tb evil",), method=b"GET", refused=False),
    Trick((b"Connection: host, x-request-id, authorization, x",), method=b"GET", refused=False),
    Trick((b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"), method=b"GET", refused=False),
)


def _case(name: str, tricks: Sequence[Trick]) -> Callable[[FaultEnvironment], None]:
    def case(env: FaultEnvironment) -> None:
        directory = env.directory / f"recorded {name}"
        directory.mkdir()
        with env.instance("rogue", faulty_engine.command("--record", str(directory))):
            for number, trick in enumerate(tricks):
                for split in (False, True):
                    _try(env, directory, trick, f"{number}{'s' if split else ''}", split=split)

    case.__name__ = name
    return case


def _try(env: FaultEnvironment, directory: Path, trick: Trick, mark: str, *, split: bool) -> None:
    line = b"%b /proxy/rogue/trick/%b %b" % (trick.method, mark.encode(), trick.version)
    head = b"\r\n".join([line, b"Host: localhost", *trick.lines, b"", b""])
    after = (
        b"GET /proxy/rogue/after/%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % mark.encode()
    )
    pieces = [head, trick.body + after] if split else [head + trick.body + after]
    answer = _send(env, pieces)
    innocent = env.ask("GET", f"/proxy/rogue/innocent/{mark}")
    assert innocent.outcome is Outcome.ANSWERED and f"innocent/{mark}".encode() in innocent.body, str(
        innocent
    )
    statuses = [
        int(status) for status in re.findall(rb"^HTTP/1\.1 (\d+)", answer, re.MULTILINE) if status != b"100"
    ]
    details = f"{head!r} {trick.body!r} -> {answer[:400]!r}"
    seen = recorded_requests(directory)
    targets = [target for target, _ in seen]
    assert not any("evil" in target for target in targets), f"smuggled: {details}"
    assert targets.count(f"/trick/{mark}") <= 1, details
    assert targets.count(f"/after/{mark}") <= 1, details
    assert statuses, f"no answer: {details}"
    env.journal.count(Outcome.REFUSED if statuses[0] >= 400 else Outcome.ANSWERED)
    if trick.refused:
        assert statuses == [400], f"{statuses}: {details}"
        assert b'"error"' in answer, details
        assert f"/trick/{mark}" not in targets, f"it reached the engine: {details}"
        assert f"/after/{mark}" not in targets, f"the connection was not closed: {details}"
    elif statuses[0] < 400:
        assert f"/trick/{mark}" in targets, f"it never reached the engine: {details}"
        body = next(body for target, body in seen if target == f"/trick/{mark}")
        expected = b"hello" if trick.body[:1] in (b"5", b"0") and _is_chunked(trick) else trick.body
        assert body == expected, f"{body!r} reached the engine: {details}"
    assert len(statuses) <= 2, details


def _is_chunked(trick: Trick) -> bool:
    names = [line.lower().replace(b"\t", b" ") for line in trick.lines]
    return any(line.startswith(b"transfer-encoding:") for line in names)


def _send(env: FaultEnvironment, pieces: Sequence[bytes]) -> bytes:
    """Everything received until the connection is closed."""
    answer = b""
    with env.connect(_READ_S) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
                if len(pieces) > 1:
                    client.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        answer += client.recv(65536)
                    client.settimeout(_READ_S)
            while data := client.recv(65536):
                answer += data
        except ConnectionError:
            return answer
        except TimeoutError:
            raise AssertionError(f"neither answered nor closed: {pieces!r} -> {answer!r}") from None
    return answer


def recorded_requests(directory: Path) -> list[tuple[str, bytes]]:
    """Target and body of each complete request the engine received. Raises AssertionError if ambiguous."""
    found = []
    for path in directory.iterdir():
        found += _requests(path.read_bytes())
    return found


def _requests(data: bytes) -> list[tuple[str, bytes]]:
    """Parsed strictly by h11; an incomplete last request is ignored."""
    found: list[tuple[str, bytes]] = []
    while data:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        head = connection.next_event()
        if not isinstance(head, h11.Request):
            return found
        raw = data.partition(b"\r\n\r\n")[0]
        assert not re.search(rb"[^\r]\n|\r[^\n]|\r\n[ \t]|\x00", raw), f"a head that can be misread: {raw!r}"
        names = [name for name, _ in head.headers]
        framing = names.count(b"content-length") + names.count(b"transfer-encoding")
        assert framing <= 1, f"two ways to read its length: {raw!r}"
        assert b"evil" not in raw.lower().replace(b"a\tb evil", b""), f"a trailer became a header: {raw!r}"
        body = b""
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            return found
        found.append((head.target.decode(), body))
        data = connection.trailing_data[0]
    return found


def many_on_one_connection_in_random_pieces(env: FaultEnvironment) -> None:
    """Pipelined or one by one, with repeated heads, in random pieces: the engine gets exactly these."""
    directory = env.directory / "recorded many"
    directory.mkdir()
    with env.instance("rogue", faulty_engine.command("--record", str(directory))):
        for seed in range(20):
            _send_many(env, directory, random.Random(seed), f"{seed}")


def _send_many(env: FaultEnvironment, directory: Path, dice: random.Random, mark: str) -> None:
    bodies = [dice.choice((b"", b"hello", EVIL, EVIL * dice.randint(1, 40))) for _ in range(40)]
    heads = [
        b"POST /proxy/rogue/many/%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n"
        % (mark.encode(), _length(body))
        for body in bodies
    ]
    is_pipelined = dice.random() < 0.5
    with env.connect() as client, client.makefile("rb") as reader:
        if is_pipelined:
            _send_in_pieces(client, b"".join(map(b"".join, zip(heads, bodies, strict=True))), dice)
        for head, body in zip(heads, bodies, strict=True):
            if not is_pipelined:
                _send_in_pieces(client, head + body, dice)
            status, answer = read_answer(reader)
            assert status == 200, (status, answer)
            assert json.loads(answer)["bytes"] == len(body), answer
            env.journal.count(Outcome.ANSWERED)
    received = [body for target, body in recorded_requests(directory) if target == f"/many/{mark}"]
    assert sorted(received) == sorted(bodies), "the engine received something else"


def _send_in_pieces(client: socket.socket, data: bytes, dice: random.Random) -> None:
    """In one piece, or cut at random places with pauses between."""
    cuts = sorted(dice.randrange(len(data)) for _ in range(dice.choice((0, 0, 1, 3))))
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        client.sendall(data[begin:end])
        time.sleep(dice.choice((0, 0, 0.002)))


def read_answer(reader: BinaryIO) -> tuple[int, bytes]:
    """Status and body of a response with a length. Raises IndexError if the connection has ended."""
    status = int(reader.readline().split()[1])
    length = 0
    while line := reader.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return status, reader.read(length)


SCENARIO = Scenario(
    "smuggling",
    cases=(
        _case("several_and_invalid_lengths", LENGTHS),
        _case("lengths_and_codings", CODINGS),
        _case("invalid_chunks_and_trailers", CHUNKS),
        _case("invalid_heads", HEADS),
        many_on_one_connection_in_random_pieces,
    ),
)
