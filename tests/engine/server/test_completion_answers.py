"""Completions: logprobs in the legacy format, echo, token ids, prompt logprobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.engine.server.in_process import CHAT, COMPLETIONS, App, app_in_process


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        yield app


async def complete(app: App, **body: Any) -> dict[str, Any]:
    """The only choice, after checking that a stream has the same content."""
    (choice,) = (await app.ask(COMPLETIONS, **body))["choices"]
    streamed = [chunk["choices"][0] for chunk in await app.stream(COMPLETIONS, **body)]
    assert "".join(one["text"] for one in streamed) == choice["text"]
    assert streamed[-1]["finish_reason"] == choice["finish_reason"]
    if choice["logprobs"] is not None:
        for name, values in choice["logprobs"].items():
            assert [value for one in streamed for value in one["logprobs"][name]] == values
    result: dict[str, Any] = choice
    return result


async def test_logprobs_are_four_lists(app: App) -> None:
    app.will_say("abé")
    choice = await complete(app, prompt="x", logprobs=2)
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "\ufffd", "\ufffd", "<eos>"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert logprobs["token_logprobs"] == [-float(token) for token in (*app.runner.script, 0)]
    assert [set(top) for top in logprobs["top_logprobs"]] == [{token} for token in logprobs["tokens"]]


async def test_tokens_can_be_returned_as_ids(app: App) -> None:
    app.will_say("ab")
    choice = await complete(app, prompt="x", logprobs=0, return_tokens_as_token_ids=True)
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in (*app.runner.script, 0)]


async def test_an_echo_has_logprobs_of_the_prompt(app: App) -> None:
    app.will_say("ab")
    choice = await complete(app, prompt="xyz", logprobs=1, echo=True)
    assert choice["text"] == "xyzab"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["x", "y", "z", "a", "b", "<eos>"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert None not in logprobs["token_logprobs"][1:]
    assert all(one < other for one, other in pairwise(logprobs["text_offset"]))


@pytest.mark.parametrize("fields", [{}, {"logprobs": 1}])
async def test_an_echo_alone_generates_nothing(app: App, fields: dict[str, Any]) -> None:
    app.will_say("ab")
    answer = await app.ask(COMPLETIONS, prompt="xyz", echo=True, max_tokens=0, **fields)
    assert answer["usage"]["completion_tokens"] == 0
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("xyz", "length")
    if fields:
        assert choice["logprobs"]["tokens"] == ["x", "y", "z"]
    assert (await complete(app, prompt="xyz", echo=True, max_tokens=0, **fields))["text"] == "xyz"


async def test_a_prompts_logprobs_are_by_token_id(app: App) -> None:
    app.will_say("a")
    choice = (await app.ask(COMPLETIONS, prompt="xy", prompt_logprobs=1))["choices"][0]
    first, second = choice["prompt_logprobs"]
    token = app.tokenizer.encode("y", add_special_tokens=False)[0]
    assert first is None
    assert second == {str(token): {"logprob": -float(token), "rank": 1, "decoded_token": "y"}}
    chat = await app.ask(CHAT, messages=[{"role": "user", "content": "x"}], prompt_logprobs=0)
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    status, refusal = await app.post(COMPLETIONS, prompt="x", prompt_logprobs=1, stream=True)
    assert (status, refusal["error"]["param"]) == (400, "prompt_logprobs")


async def test_token_ids_are_returned(app: App) -> None:
    app.will_say("ab")
    body = {"prompt": [5, 6], "return_token_ids": True}
    choice = (await app.ask(COMPLETIONS, **body))["choices"][0]
    assert choice["prompt_token_ids"] == [5, 6]
    assert choice["token_ids"] == [*app.runner.script, 0]
    streamed = [chunk["choices"][0] for chunk in await app.stream(COMPLETIONS, **body)]
    assert [one["prompt_token_ids"] for one in streamed if "prompt_token_ids" in one] == [[5, 6]]
    assert [token for one in streamed for token in one["token_ids"]] == choice["token_ids"]


async def test_chat_logprobs_have_bytes(app: App) -> None:
    app.will_say("a🙂")
    body = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 1}
    content = (await app.ask(CHAT, **body))["choices"][0]["logprobs"]["content"]
    assert bytes(byte for one in content[:-1] for byte in one["bytes"]) == "a🙂".encode()
    assert content[0]["token"] == "a"
    assert content[-1]["token"] == "<eos>"
    assert all(isinstance(one["top_logprobs"], list) for one in content)


async def test_tokens_after_a_stop_string_have_no_logprobs(app: App) -> None:
    app.will_say("abcdef")
    choice = await complete(app, prompt="x", stop=["cd"], logprobs=0)
    assert choice["text"] == "ab"
    assert choice["stop_reason"] == "cd"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "d"]
    shown = await complete(app, prompt="x", stop=["cd"], include_stop_str_in_output=True)
    assert shown["text"] == "abcd"


async def test_min_tokens_delays_stop_strings(app: App) -> None:
    app.will_say("abcabc.")
    for min_tokens, text in ((0, "a"), (2, "a"), (3, "abca"), (6, "abcabc.")):
        choice = await complete(app, prompt="x", stop=["bc"], min_tokens=min_tokens, max_tokens=9)
        assert choice["text"] == text, min_tokens


async def test_prompts_in_all_shapes_and_several_choices(app: App) -> None:
    app.will_say("ab")
    for prompt, number in (("x", 1), (["x", "y"], 2), ([5, 6], 1), ([[5], [6, 7]], 2)):
        answer = await app.ask(COMPLETIONS, prompt=prompt, n=2)
        assert [choice["index"] for choice in answer["choices"]] == list(range(2 * number))
        assert {choice["text"] for choice in answer["choices"]} == {"ab"}
        assert answer["usage"]["completion_tokens"] == 2 * number * 3
    assert answer["usage"]["prompt_tokens"] == 3


async def test_token_ids_must_be_in_the_vocabulary(app: App) -> None:
    for fields in ({"logit_bias": {"9999": 1}}, {"allowed_token_ids": [9999]}, {"stop_token_ids": [9999]}):
        status, refusal = await app.post(COMPLETIONS, prompt="x", **fields)
        assert (status, refusal["error"]["param"]) == (400, next(iter(fields)))


@pytest.mark.parametrize(
    "field", ["guided_json", "guided_regex", "guided_choice", "guided_grammar", "functions", "function_call"]
)
async def test_a_refusal_says_what_to_use_instead(app: App, field: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], field: {"type": "object"}}
    status, refusal = await app.post(CHAT, **body)
    assert (status, refusal["error"]["param"]) == (400, field)
    assert " use " in refusal["error"]["message"]
