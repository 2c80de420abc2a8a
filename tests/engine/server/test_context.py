"""The context: long prompts are refused with the wording that clients match; max_tokens may exceed it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.engine.server.serving import MAX_MODEL_LEN, Running

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
ANTHROPIC = "/v1/messages"

OPENAI_WORDS = re.compile(
    r"This model's maximum context length is (\d+) tokens\. However, you requested (?:at least )?(\d+) "
    r"tokens \((?:at least )?(\d+) in the (?:prompt|messages|input), (\d+) in the completion\)\. "
    r"Please reduce the length of the"
)
ANTHROPIC_WORDS = re.compile(r"^prompt is too long: (\d+) tokens > (\d+) maximum")


def post(server: Running, path: str, **body: Any) -> tuple[int, Any]:
    with server.http() as client:
        response = client.post(path, json=body)
    return response.status_code, response.json()


def bodies(length: int, max_tokens: int | None) -> list[tuple[str, dict[str, Any]]]:
    """Bodies with a prompt of at least this many characters, for every generating route."""
    text = "a" * length
    messages = [{"role": "user", "content": text}]
    asked: dict[str, dict[str, int]] = {
        name: {} if max_tokens is None else {name: max_tokens}
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")
    }
    return [
        (COMPLETIONS, {"prompt": text, **asked["max_tokens"]}),
        (CHAT, {"messages": messages, **asked["max_tokens"]}),
        (CHAT, {"messages": messages, **asked["max_completion_tokens"]}),
        (RESPONSES, {"input": text, **asked["max_output_tokens"]}),
        (ANTHROPIC, {"messages": messages, "max_tokens": max_tokens or 1}),
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 7])
@pytest.mark.parametrize("length", [MAX_MODEL_LEN, MAX_MODEL_LEN + 50, 100 * MAX_MODEL_LEN, 2 << 20])
def test_a_prompt_that_does_not_fit_is_refused_with_the_wording_clients_match(
    fake_server: Running, length: int, max_tokens: int | None, stream: bool
) -> None:
    for path, body in bodies(length, max_tokens):
        status, answer = post(fake_server, path, **body, stream=stream)
        error = answer["error"]
        assert status == 400, answer
        found = OPENAI_WORDS.search(error["message"])
        assert found is not None, error
        limit, total, prompt, output = map(int, found.groups())
        assert (limit, total) == (MAX_MODEL_LEN, prompt + output)
        if length < 1 << 20:
            assert prompt >= length
        else:
            assert "requested at least" in error["message"]
        if path != COMPLETIONS:
            assert output == (max_tokens or 1)
        if path == ANTHROPIC:
            assert (answer["type"], error["type"]) == ("error", "invalid_request_error")
            anthropic = ANTHROPIC_WORDS.search(error["message"].replace("at least ", ""))
            assert anthropic is not None, error
            assert int(anthropic[1]) == prompt > int(anthropic[2])
        else:
            assert error["code"] == "context_length_exceeded"
            assert error["param"] in ("prompt", "messages", "input")


@pytest.mark.parametrize("max_tokens", [MAX_MODEL_LEN + 1, 32_000, 2**40])
def test_max_tokens_of_a_chat_may_exceed_the_context(fake_server: Running, max_tokens: int) -> None:
    for path, body in bodies(5, max_tokens)[1:]:
        fields = {} if path in (RESPONSES, ANTHROPIC) else {"ignore_eos": True}
        status, answer = post(fake_server, path, **body, **fields)
        assert status == 200, answer
        usage = answer["usage"]
        prompt = usage.get("prompt_tokens") or usage["input_tokens"]
        output = usage.get("completion_tokens") or usage["output_tokens"]
        assert prompt + output <= MAX_MODEL_LEN
        if fields:
            assert prompt + output == MAX_MODEL_LEN
            assert answer["choices"][0]["finish_reason"] == "length"


def test_max_tokens_of_a_completion_above_the_context_is_refused_as_vllm_does(fake_server: Running) -> None:
    status, answer = post(fake_server, COMPLETIONS, prompt="abc", max_tokens=MAX_MODEL_LEN + 1)
    assert status == 400
    assert answer["error"]["param"] == "max_tokens"
    assert answer["error"]["code"] == "context_length_exceeded"
    found = OPENAI_WORDS.search(answer["error"]["message"])
    assert found is not None
    assert [int(number) for number in found.groups()] == [200, 204, 3, 201]


def test_token_counters_accept_more_than_the_context(fake_server: Running) -> None:
    text = "a" * (100 * MAX_MODEL_LEN)
    messages = [{"role": "user", "content": text}]
    for path, body, field in (
        ("/tokenize", {"prompt": text}, "count"),
        ("/tokenize", {"messages": messages}, "count"),
        ("/v1/messages/count_tokens", {"messages": messages}, "input_tokens"),
    ):
        status, answer = post(fake_server, path, **body)
        assert status == 200, answer
        assert answer[field] >= len(text)
