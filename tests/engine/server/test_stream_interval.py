"""`stream_interval`: fewer chunks with the same content."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from engine.core.types import FinishReason
from engine.server.generation.generation import Choice, ChoiceDelta
from engine.server.generation.stream_interval import coalesce
from tests.engine.fake_runner import logprobs_of
from tests.engine.server.in_process import CHAT, COMPLETIONS, App, app_in_process

TEXT = "abcdefghijk"  # 11 tokens, and then the end
MESSAGES = [{"role": "user", "content": "x"}]

# The function alone

FIRST, SECOND = cast(Choice, "first"), cast(Choice, "second")


def token(choice: Choice, number: int, *, ends: bool = False) -> ChoiceDelta:
    return ChoiceDelta(
        choice,
        chr(number),
        FinishReason.STOP if ends else None,
        token_ids=(number,),
        logprobs=(logprobs_of(number),),
    )


async def bundled(steps: Sequence[list[ChoiceDelta]], interval: int) -> list[list[ChoiceDelta]]:
    async def one_by_one() -> AsyncIterator[list[ChoiceDelta]]:
        for step in steps:
            yield step

    return [deltas async for deltas in coalesce(one_by_one(), interval)]


@pytest.mark.parametrize(
    ("interval", "num_tokens", "sizes"),
    [
        (1, 4, [1, 1, 1, 1]),
        (4, 11, [1, 4, 4, 2]),
        (4, 9, [1, 4, 4]),
        (4, 5, [1, 4]),
        (4, 3, [1, 2]),
        (100, 11, [1, 10]),
        (100, 1, [1]),
    ],
)
async def test_the_first_and_the_last_token_are_sent_at_once(
    interval: int, num_tokens: int, sizes: list[int]
) -> None:
    steps = [[token(FIRST, number, ends=number == num_tokens)] for number in range(1, num_tokens + 1)]
    pieces = [delta for deltas in await bundled(steps, interval) for delta in deltas]
    assert [len(delta.token_ids) for delta in pieces] == sizes
    assert "".join(delta.text for delta in pieces) == "".join(map(chr, range(1, num_tokens + 1)))
    logprobs = [position for delta in pieces for position in delta.logprobs]
    assert logprobs == [logprobs_of(number) for number in range(1, num_tokens + 1)]
    assert [delta.finish_reason for delta in pieces] == [None] * (len(sizes) - 1) + [FinishReason.STOP]


async def test_choices_are_counted_separately() -> None:
    steps = [[token(FIRST, n), token(SECOND, n)] for n in (1, 2)]
    steps += [[token(FIRST, 3), token(SECOND, 3, ends=True)], [token(FIRST, 4)], [token(FIRST, 5, ends=True)]]
    pieces = await bundled(steps, 3)
    sizes = [[(delta.choice, len(delta.token_ids)) for delta in deltas] for deltas in pieces]
    assert sizes == [[(FIRST, 1), (SECOND, 1)], [(SECOND, 2)], [(FIRST, 3)], [(FIRST, 1)]]


async def test_prompt_logprobs_are_in_the_chunk_of_their_delta() -> None:
    first_delta = ChoiceDelta(FIRST, "a", token_ids=(1,), prompt_logprobs=(None,))
    pieces = await bundled([[first_delta], [token(FIRST, 2)], [token(FIRST, 3, ends=True)]], 5)
    assert [delta.prompt_logprobs for deltas in pieces for delta in deltas] == [(None,), None]


# In responses


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        app.will_say(TEXT)
        yield app


@pytest.fixture(scope="module")
async def interval_app(fake_model: Path) -> AsyncIterator[App]:
    """An app with `--stream-interval 3`."""
    async with app_in_process(fake_model, stream_interval=3) as app:
        app.will_say(TEXT)
        yield app


async def pieces_of(app: App, **body: Any) -> list[dict[str, Any]]:
    """The chunks. They may be larger, since tokens accumulate while the loop is busy."""
    chunks = await app.stream(COMPLETIONS, prompt="x", return_token_ids=True, **body)
    return [chunk["choices"][0] for chunk in chunks]


async def test_a_stream_has_chunks_of_the_requested_size(app: App) -> None:
    pieces = await pieces_of(app, stream_interval=4)
    assert "".join(piece["text"] for piece in pieces) == TEXT
    assert all(len(piece["token_ids"]) >= 4 for piece in pieces[1:-1])
    assert sum(len(piece["token_ids"]) for piece in pieces) == len(TEXT) + 1


async def test_the_flag_is_the_minimum_chunk_size(interval_app: App) -> None:
    for wanted, least in ((None, 3), (2, 3), (5, 5)):
        pieces = await pieces_of(interval_app, stream_interval=wanted)
        assert all(len(piece["token_ids"]) >= least for piece in pieces[1:-1])
        assert "".join(piece["text"] for piece in pieces) == TEXT


async def test_a_stop_string_ends_the_stream_at_its_position(app: App) -> None:
    pieces = await pieces_of(app, stream_interval=100, stop="gh")
    assert "".join(piece["text"] for piece in pieces) == "abcdef"
    assert pieces[-1]["finish_reason"] == "stop"
    assert len(pieces) <= 2


async def test_chunks_have_the_details_of_all_their_tokens(app: App) -> None:
    body: dict[str, Any] = {"logprobs": 1, "max_tokens": 6}
    whole = (await app.ask(COMPLETIONS, prompt="x", return_token_ids=True, **body))["choices"][0]
    pieces = await pieces_of(app, **body, stream_interval=3)
    assert [token for piece in pieces for token in piece["token_ids"]] == whole["token_ids"]
    for name, values in whole["logprobs"].items():
        assert [value for piece in pieces for value in piece["logprobs"][name]] == values


async def test_chats_count_all_their_tokens(app: App) -> None:
    chunks = await app.stream(
        CHAT, messages=MESSAGES, stream_interval=100, stream_options={"include_usage": True}
    )
    contents = [c["delta"].get("content") for chunk in chunks for c in chunk["choices"]]
    assert "".join(content for content in contents if content) == TEXT
    assert len([content for content in contents if content]) <= 2
    assert chunks[-1]["usage"]["completion_tokens"] == len(TEXT) + 1


@pytest.mark.parametrize(
    ("path", "body", "event"),
    [
        ("/v1/responses", {"input": "x"}, "response.output_text.delta"),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 50}, "content_block_delta"),
    ],
)
async def test_responses_and_messages_follow_the_flag(
    fake_model: Path, path: str, body: dict[str, Any], event: str
) -> None:
    async with app_in_process(fake_model, stream_interval=1000) as app:
        app.will_say(TEXT * 20)
        response = await app.http.post(path, json={"stream": True, **body})
        assert 1 <= response.text.count(f"event: {event}\n") <= 2


async def test_without_a_stream_it_has_no_effect(app: App) -> None:
    answer = await app.ask(COMPLETIONS, prompt="x", stream_interval=4)
    assert answer["choices"][0]["text"] == TEXT


@pytest.mark.parametrize("interval", [0, -1, 1.5, "4", True])
async def test_an_invalid_interval_is_refused(app: App, interval: Any) -> None:
    status, answer = await app.post(COMPLETIONS, prompt="x", stream_interval=interval)
    assert (status, answer["error"]["param"]) == (400, "stream_interval")
