"""Token counts read from the end of a response, of any engine and in any pieces."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.telemetry.token_usage import ResponseTail, TokenUsage, usage_of

CHAT = {"id": "c", "choices": [{"message": {"content": "x" * 9000}}]}
DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, (5, 7)),
        ({"prompt_tokens": 5, "total_tokens": 5}, (5, 0)),  # embeddings
        ({"total_tokens": 9}, (9, 0)),  # rerank
        ({"completion_tokens": 7}, (0, 7)),
        ({"input_tokens": 5, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 7}, (5, 7)),
        ({"input_tokens": 1, "cache_read_input_tokens": 4, "output_tokens": 7}, (5, 7)),  # Messages
    ],
)
def test_each_protocols_fields_are_known(usage: dict[str, object], expected: tuple[int, int]) -> None:
    for separators in ((",", ":"), (", ", ": ")):
        body = json.dumps(CHAT | {"usage": usage, "prompt_logprobs": None}, separators=separators)
        assert usage_of(body.encode()) == TokenUsage(*expected)
    body = json.dumps(CHAT | {"usage": usage}, indent=2) + "\n"
    assert usage_of(body.encode()) == TokenUsage(*expected)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"y" * 1024,
        b'{"usage": null}',
        b'{"usage"',
        b'{"usage": ',
        b'{"usage": {"prompt_tokens": 5',
        b'{"usage": {"prompt_tokens": "5"}}',
        b'{"usage": {"prompt_tokens": true, "completion_tokens": -1}}',
        b'{"usage": {"prompt_tokens": 1e3}}',
        b'{"usage": {"prompt_tokens": %d}}' % 10**30,
        b'{"usage": [5, 7]}',
        b'{"usage": ' + b"[" * 2000,
        b'{"usage": {"\xff": 1}}',
        json.dumps({"content": '"usage": {"prompt_tokens": 5}'}).encode(),  # only a text about it
        json.dumps({"usage": {"prompt_tokens": 5}, "data": "x" * 5000}).encode(),  # out of sight
        gzip.compress(b'{"usage": {"prompt_tokens": 5}}', mtime=0),
    ],
)
def test_text_other_than_usage_is_ignored(body: bytes) -> None:
    assert usage_of(body) is None


def test_an_invalid_count_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.telemetry.token_usage._warned_fields", set())
    body = b'{"usage": {"input_tokens": %d, "output_tokens": 7, "prompt_tokens": null}}' % 2**63
    for _ in range(3):
        assert usage_of(body) == TokenUsage(0, 7)
    [line] = [record.message for record in caplog.records]
    assert "input_tokens = 9223372036854775808" in line


@given(st.binary(max_size=200))
def test_no_bytes_cause_an_exception(noise: bytes) -> None:
    usage_of(b'{"usage": ' + noise)
    usage_of(noise)


@given(st.integers(1, 400))
def test_a_stream_may_arrive_in_any_pieces(size: int) -> None:
    chunks = [event({"choices": [{"text": "t"}], "usage": None}) for _ in range(9)]
    last = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})
    stream = b"".join([*chunks, last, DONE])
    tail = ResponseTail(is_event_stream=True)
    for at in range(0, len(stream), size):
        tail.add(stream[at : at + size])
    assert tail.usage() == TokenUsage(3, 9)


def test_a_stream_without_usage_is_counted_by_its_events() -> None:
    tail = ResponseTail(is_event_stream=True)
    tail.add(b": comment\n\n")
    for _ in range(5):
        tail.add(event({"choices": [{"text": "data: \n\ndata: "}]}))
    assert tail.usage() == TokenUsage(0, 5, is_estimated=True)  # cut before its end
    tail.add(event({"choices": [{"text": "a"}]}) + event({"choices": [{"text": "b"}]}) + DONE)
    assert tail.usage() == TokenUsage(0, 7, is_estimated=True)


def test_other_responses_are_not_counted_by_events() -> None:
    tail = ResponseTail(is_event_stream=False)
    assert tail.usage() is None
    tail.add(b'\n\ndata: {"text": "')
    tail.add(b"x" * 100_000)
    assert tail.usage() is None
    tail.add(b'", "usage": {"prompt_tokens": 2}}')
    assert tail.usage() == TokenUsage(2, 0)
