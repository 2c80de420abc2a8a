"""Server-sent events, split into any pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.protocols import sse
from api.protocols.sse import EventReader, EventTooLong, SseComment, SseEvent


def read(*pieces: bytes) -> list[SseEvent | SseComment]:
    reader = EventReader()
    return [item for piece in pieces for item in reader.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "items"),
    [
        (b"data: a\n\n", [SseEvent(b"a")]),
        (b"data:a\r\n\r\ndata:  b\r\n\r\n", [SseEvent(b"a"), SseEvent(b" b")]),
        (b"data: a\r\rdata: b\r\r\n", [SseEvent(b"a"), SseEvent(b"b")]),
        (b"data: a\ndata: b\n\n", [SseEvent(b"a\nb")]),
        (b"event: x\nid: 5\ndata: a\nretry: 3\n\n", [SseEvent(b"a")]),
        (b"event: ping\n\n", []),
        (b": here\n\ndata: a\n\n", [SseComment(b" here"), SseEvent(b"a")]),
        (b"data: a\n:between\n\n", [SseComment(b"between"), SseEvent(b"a")]),
        (b"data\n\n", [SseEvent(b"")]),
        (b"\xef\xbb\xbfdata: a\n\n", [SseEvent(b"a")]),
        (b"data: a", []),
    ],
)
def test_the_standards_rules(stream: bytes, items: list[SseEvent | SseComment]) -> None:
    assert read(stream) == items
    assert read(*(bytes([byte]) for byte in stream)) == items


LINES = st.sampled_from([b"data: x", b"data:", b": c", b"", b"event: e", b'data: {"a": 1}', b"nonsense"])
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]))).map(
    lambda lines: b"".join(part for line in lines for part in line)
)


@given(STREAMS, st.data())
def test_splits_make_no_difference(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    assert read(*pieces, b"\n") == read(stream + b"\n")


def test_an_incomplete_event_is_detected() -> None:
    reader = EventReader()
    for piece, is_between in [(b"", True), (b"data: a", False), (b"\n", False), (b"\n", True), (b"\n", True)]:
        reader.feed(piece)
        assert reader.is_between_events is is_between


@pytest.mark.parametrize("piece", [b"data: aaaa\n", b"a" * 16])
def test_an_endless_event_is_refused(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    reader = EventReader()
    with pytest.raises(EventTooLong, match="exceeds 100 bytes"):
        for _ in range(100):
            reader.feed(piece)
