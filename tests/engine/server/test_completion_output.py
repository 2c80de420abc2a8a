"""A stream adds up to the non-streamed response, however tokens are split into steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.types import EngineRequest, EngineStats, FinishReason, SamplingParams, TokenDelta
from engine.server.generation.chat_events import ChoiceReader
from engine.server.generation.generation import Choice, ChoiceDelta, Usage
from engine.server.model.metrics import Metrics
from engine.server.openai.chat import describe_choice
from engine.server.openai.choice_details import ChoiceDetails
from engine.server.openai.chunks import ChatChunks, CompletionChunks
from engine.server.openai.completion_output import FinishedChoice
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.completion_body import CompletionBody
from engine.text.detokenizer import Detokenizer
from engine.text.parsers.hermes import HermesParser
from engine.text.parsers.reasoning import QWEN3, ReasoningParser
from engine.text.tokenizer import Tokenizer
from tests.engine.fake_runner import logprobs_of
from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer

TOKENIZER = Tokenizer(fast=byte_level_tokenizer())
EOS = 0
PROMPT = [3, 4, 5]
METRICS = Metrics("m", EngineStats)

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é\\n🙂", "y": [1, {}]}}\n</tool_call>'
TEXT = ["a", " b", "é", "🙂", "\n", "<", "{", "}"]
PIECES = [*TEXT, "<think>", "</think>", "<tool_call>", CALL, "</tool_call>"]
WORDS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
STOPS = st.lists(st.sampled_from(["b", "é🙂", "\n\n", "a b a", "</think>", "}}"]), max_size=3)


@dataclass(frozen=True)
class Case:
    token_ids: list[int]
    reason: FinishReason
    stops: list[str]
    min_tokens: int
    shows_stop_token: bool
    echo: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A text, sometimes with broken characters, that ends by a token or by its length."""
    token_ids = TOKENIZER.encode(draw(WORDS), add_special_tokens=False)
    for byte in draw(st.lists(st.integers(15, 25), max_size=3)):
        token_ids.insert(draw(st.integers(0, len(token_ids))), byte)
    reason = draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]))
    if reason is FinishReason.STOP or not token_ids:
        token_ids.append(EOS)
    return Case(
        token_ids,
        reason,
        draw(STOPS),
        draw(st.integers(0, 6)),
        draw(st.booleans()),
        draw(st.sampled_from(["", "Once "])),
    )


def cut(token_ids: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Split into steps of these sizes; the last one has the rest."""
    steps, start = [], 0
    for size in sizes:
        if start + size < len(token_ids):
            steps.append(tuple(token_ids[start : start + size]))
            start += size
    return [*steps, tuple(token_ids[start:])]


def deltas(case: Case, steps: Sequence[tuple[int, ...]], *, prefix: str = "") -> list[ChoiceDelta]:
    """A choice's deltas for the engine's steps, until it ends."""
    params = SamplingParams(max_tokens=999, min_tokens=case.min_tokens, logprobs=0)
    request = EngineRequest(request_id="r", prompt_token_ids=PROMPT, params=params, arrival_time=0.0)
    detokenizer = Detokenizer(
        TOKENIZER,
        PROMPT,
        stops=case.stops,
        min_tokens=case.min_tokens,
        include_stop_in_output=case.shows_stop_token,
    )
    choice = Choice(0, request, detokenizer, prefix=prefix, shows_stop_token=case.shows_stop_token)
    choice_deltas: list[ChoiceDelta] = []
    for number, step in enumerate(steps):
        delta = TokenDelta(
            request_id="r",
            token_ids=step,
            finish_reason=case.reason if number == len(steps) - 1 else None,
            logprobs=tuple(logprobs_of(token) for token in step),
        )
        choice_deltas.append(choice.apply(delta, METRICS))
        if choice_deltas[-1].finish_reason is not None:
            break
    return choice_deltas


def usage() -> Usage:
    return Usage(0, 0, 0)


def parse(events: bytes) -> list[Any]:
    return [json.loads(one.removeprefix("data: ")) for one in events.decode().split("\n\n") if one]


def finished(choice_deltas: list[ChoiceDelta]) -> FinishedChoice:
    whole = FinishedChoice(0)
    for delta in choice_deltas:
        whole.add(delta)
    return whole


def assemble(chunks: list[Any]) -> dict[str, Any]:
    """Assemble a chat's chunks as a client does, and check their format."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert [choice["finish_reason"] is None for choice in choices] == [True] * (len(choices) - 1) + [False]
    calls: dict[int, Any] = {}
    for call in (call for choice in choices for call in choice["delta"].get("tool_calls", [])):
        if call["index"] not in calls:
            assert call["id"].startswith("call_")
            calls[call["index"]] = call
        else:
            assert set(call) == {"index", "function"}
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return {
        "content": "".join(choice["delta"].get("content", "") for choice in choices),
        "reasoning": "".join(choice["delta"].get("reasoning", "") for choice in choices),
        "calls": [call["function"] for _, call in sorted(calls.items())],
        "finish_reason": choices[-1]["finish_reason"],
        "stop_reason": choices[-1]["stop_reason"],
        "logprobs": [one for choice in choices for one in (choice["logprobs"] or {}).get("content", [])],
        "token_ids": [token for choice in choices for token in choice.get("token_ids", [])],
    }


def whole_chat(
    choice_deltas: list[ChoiceDelta], reader: ChoiceReader, details: ChoiceDetails
) -> dict[str, Any]:
    described = describe_choice(finished(choice_deltas), reader)
    message = described["message"]
    logprobs = details.chat_logprobs(choice_deltas)
    return {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning", ""),
        "calls": [call["function"] for call in message.get("tool_calls", [])],
        "finish_reason": described["finish_reason"],
        "stop_reason": described["stop_reason"],
        "logprobs": [] if logprobs is None else logprobs["content"],
        "token_ids": details.token_ids(choice_deltas).get("token_ids", []),
    }


def reader_factory(echo: str, *, inside: bool, shows: bool, parallel: bool) -> Callable[[], ChoiceReader]:
    return lambda: ChoiceReader(
        0,
        reasoning=ReasoningParser(QWEN3, inside=inside),
        tools=HermesParser(),
        shows_reasoning=shows,
        allows_parallel_calls=parallel,
        echo=echo,
    )


@settings(max_examples=400, deadline=None)
@given(
    case=cases(),
    sizes=st.lists(st.integers(1, 9), max_size=30),
    inside=st.booleans(),
    shows=st.booleans(),
    parallel=st.booleans(),
    wants_more=st.booleans(),
)
def test_a_chat_with_reasoning_and_tools(
    case: Case, sizes: list[int], inside: bool, shows: bool, parallel: bool, wants_more: bool
) -> None:
    body = ChatBody.model_validate(
        {
            "messages": [{"role": "user", "content": "x"}],
            "logprobs": wants_more,
            "return_token_ids": wants_more,
        }
    )
    make_reader = reader_factory(case.echo, inside=inside, shows=shows, parallel=parallel)
    whole = deltas(case, [tuple(case.token_ids)])
    expected = whole_chat(whole, make_reader(), ChoiceDetails(body, TOKENIZER))
    chunks = ChatChunks(
        {"id": "c"},
        ChoiceDetails(body, TOKENIZER),
        {0: make_reader()},
        include_usage=False,
        continuous_usage=False,
    )
    steps = cut(case.token_ids, sizes)
    choice_deltas = [chunks.step([delta], usage) for delta in deltas(case, steps)]
    assert assemble([event for events in choice_deltas for event in parse(events)]) == expected
    assert expected["content"].startswith(case.echo)


@settings(max_examples=200, deadline=None)
@given(case=cases(), sizes=st.lists(st.integers(1, 9), max_size=30))
def test_a_plain_chat(case: Case, sizes: list[int]) -> None:
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "x"}]})
    details = ChoiceDetails(body, TOKENIZER)
    expected = whole_chat(deltas(case, [tuple(case.token_ids)]), ChoiceReader(0), details)
    chunks = ChatChunks({"id": "c"}, details, None, include_usage=False, continuous_usage=False)
    choice_deltas = [chunks.step([delta], usage) for delta in deltas(case, cut(case.token_ids, sizes))]
    assert assemble([event for events in choice_deltas for event in parse(events)]) == expected


@settings(max_examples=200, deadline=None)
@given(case=cases(), sizes=st.lists(st.integers(1, 9), max_size=30))
def test_a_completion(case: Case, sizes: list[int]) -> None:
    body = CompletionBody.model_validate({"prompt": "x", "logprobs": 0, "return_token_ids": True})
    whole = deltas(case, [tuple(case.token_ids)], prefix=case.echo)
    details = ChoiceDetails(body, TOKENIZER)
    chunks = CompletionChunks(
        {"id": "c"}, ChoiceDetails(body, TOKENIZER), include_usage=False, continuous_usage=False
    )
    steps = deltas(case, cut(case.token_ids, sizes), prefix=case.echo)
    choices = [chunk["choices"][0] for delta in steps for chunk in parse(chunks.step([delta], usage))]
    assert "".join(choice["text"] for choice in choices) == finished(whole).text
    assert finished(whole).text.startswith(case.echo)
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == (
        whole[-1].finish_reason,
        whole[-1].stop_reason,
    )
    expected = details.completion_logprobs(whole)
    assert expected == {
        name: [one for choice in choices for one in choice["logprobs"][name]] for name in expected or {}
    }
    assert choices[0]["prompt_token_ids"] == PROMPT
    choice_deltas = [token for choice in choices for token in choice["token_ids"]]
    assert choice_deltas == details.token_ids(whole)["token_ids"] == case.token_ids[: len(choice_deltas)]


@settings(max_examples=200, deadline=None)
@given(case=cases(), sizes=st.lists(st.integers(1, 9), max_size=30))
def test_no_chunk_ends_within_a_character(case: Case, sizes: list[int]) -> None:
    """U+FFFD replaces invalid bytes, never a character that a later chunk would complete."""
    text = TOKENIZER.decode(case.token_ids, skip_special_tokens=True)
    choice_deltas = deltas(case, cut(case.token_ids, sizes))
    assert sum(delta.text.count("\ufffd") for delta in choice_deltas) <= text.count("\ufffd")
