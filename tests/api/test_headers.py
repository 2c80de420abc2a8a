"""The header rules, without sockets."""

from __future__ import annotations

from uuid import UUID

import pytest

from api.http.asgi import RawHeaders
from api.http.headers import (
    handshake_headers,
    new_request_id,
    nominated_by,
    read_request_headers,
    response_headers,
    sane_request_id,
)


def sent(*headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    """The forwarded headers of a request; the last of each name."""
    read = read_request_headers(list(headers), b"9.9.9.9", b"http")
    lines = b"".join((read.passed, read.framing, b"x-request-id: ", read.request_id, read.forwarded))
    assert lines.endswith(b"\r\n\r\n")
    return dict(line.split(b": ", 1) for line in lines[:-4].split(b"\r\n"))


@pytest.mark.parametrize(
    ("headers", "has_body", "is_chunked"),
    [
        ([], False, False),
        ([(b"content-length", b"0")], False, False),
        ([(b"content-length", b"00")], False, False),
        ([(b"content-length", b"10")], True, False),
        ([(b"transfer-encoding", b"chunked")], True, True),
        ([(b"content-length", b"10"), (b"transfer-encoding", b"chunked")], True, True),
    ],
)
def test_the_framing_of_requests(headers: RawHeaders, has_body: bool, is_chunked: bool) -> None:
    read = read_request_headers(headers, b"9.9.9.9", b"http")
    assert (read.has_body, read.is_chunked) == (has_body, is_chunked)
    assert (b"content-length" in sent(*headers)) == (bool(headers) and not is_chunked)


@pytest.mark.parametrize("name", [b"content-length", b"host", b"transfer-encoding", b"x-request-id"])
def test_connection_cannot_remove_framing_and_request_id(name: bytes) -> None:
    assert nominated_by(name + b", x-mine") == {b"x-mine"}


@pytest.mark.parametrize(
    "value", [b"keep-alive", b"close", b"Keep-Alive, Upgrade", b"TE, close", b"", b" , "]
)
def test_ordinary_connection_options_remove_nothing(value: bytes) -> None:
    assert nominated_by(value) == frozenset()


def test_several_connection_headers_are_combined() -> None:
    headers = [
        (b"connection", b"x-a"),
        (b"x-a", b"1"),
        (b"x-b", b"2"),
        (b"connection", b"X-B"),
        (b"x-c", b"3"),
    ]
    got = sent(*headers)
    assert (b"x-a" in got, b"x-b" in got, got[b"x-c"]) == (False, False, b"3")


def test_forwarded_for_becomes_one_list() -> None:
    assert sent((b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2"))[b"x-forwarded-for"] == (
        b"1.1.1.1, 2.2.2.2, 9.9.9.9"
    )


@pytest.mark.parametrize("given", [b"", b"a b", b"a\tb", b"\xff", b"x" * 129, b"a\x00"])
def test_an_invalid_request_id_is_replaced(given: bytes) -> None:
    assert sane_request_id(given) != given
    assert sane_request_id(b"x" * 128) == b"x" * 128


def test_generated_request_ids_differ_and_are_uuids() -> None:
    """Some engines refuse requests whose id is not a UUID."""
    made = {new_request_id().decode() for _ in range(1000)}
    assert len(made) == 1000
    assert {UUID(one).version for one in made} == {4}


@pytest.mark.parametrize(
    ("headers", "can_add_events"),
    [
        ([(b"content-type", b"text/event-stream; charset=utf-8")], True),
        ([(b"content-type", b"Text/Event-Stream")], True),
        ([(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")], False),
        ([(b"content-type", b"text/event-stream"), (b"content-length", b"10")], False),
        ([(b"content-type", b"application/json")], False),
        ([], False),
    ],
)
def test_which_responses_may_get_an_error_event(headers: RawHeaders, can_add_events: bool) -> None:
    assert response_headers(headers, 200, b"r")[1] == can_add_events


@pytest.mark.parametrize(
    ("content_type", "is_streamed"),
    [
        (b"text/event-stream", True),
        (b"application/x-ndjson", True),
        (b"Application/JSONL; charset=utf-8", True),
        (b"application/json", False),
    ],
)
def test_streams_are_marked_unbuffered(content_type: bytes, is_streamed: bool) -> None:
    headers, _ = response_headers([(b"content-type", content_type)], 200, b"r")
    assert ((b"x-accel-buffering", b"no") in headers) is is_streamed


def test_an_engines_own_buffering_header_is_kept() -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"yes")]
    assert response_headers(headers, 200, b"r")[0] == [*headers, (b"x-request-id", b"r")]


def test_a_clients_tenant_header_is_dropped() -> None:
    claim = (b"x-berth-tenant", b"somebody;admin")
    headers = [(b"accept", b"a"), claim, (b"connection", b"x-berth-tenant, upgrade"), claim]
    read = read_request_headers(headers, b"9.9.9.9", b"http")
    assert b"tenant" not in read.passed + read.forwarded
    assert handshake_headers(headers) == [(b"accept", b"a")]
