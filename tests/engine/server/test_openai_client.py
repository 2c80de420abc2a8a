"""The official `openai` client with the server, for a fake and a real model."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.engine.server.serving import MAX_MODEL_LEN, Running

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]


def collect(chunks: Any) -> tuple[dict[int, str], dict[int, str], Any]:
    """(text, finish reason) by choice, and the usage, of a streamed completion."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in reasons
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, usage


def test_completion(server: Running) -> None:
    with server.openai() as client:
        answer = client.completions.create(model="fake", prompt="Hello", seed=1, max_tokens=9)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.model == "fake"
    [choice] = answer.choices
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert 1 <= answer.usage.completion_tokens <= 9
    assert answer.usage.total_tokens == 5 + answer.usage.completion_tokens


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("number", [1, 3])
def test_a_stream_equals_the_whole_response(server: Running, temperature: float, number: int) -> None:
    with server.openai() as client:
        for seed in range(6):
            arguments: dict[str, Any] = {
                "model": "fake",
                "prompt": ["Hello", "a b"],
                "seed": seed,
                "max_tokens": 30,
                "temperature": temperature,
                "n": number,
                "stop": ["ab", "é", " c"],
            }
            whole = client.completions.create(**arguments)
            options: Any = {"include_usage": True}
            texts, reasons, usage = collect(
                client.completions.create(**arguments, stream=True, stream_options=options)
            )
            assert texts == {choice.index: choice.text for choice in whole.choices}
            assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
            assert len(texts) == 2 * number
            assert whole.usage is not None
            assert usage.completion_tokens == whole.usage.completion_tokens
            assert usage.prompt_tokens == whole.usage.prompt_tokens == 8


def test_a_seed_is_reproducible_and_choices_differ(server: Running) -> None:
    with server.openai() as client:
        first, second = (
            client.completions.create(model="fake", prompt="a", seed=7, n=4, max_tokens=20).choices
            for _ in range(2)
        )
    assert [choice.text for choice in first] == [choice.text for choice in second]
    assert len({choice.text for choice in first}) > 1


def test_without_a_seed_answers_differ(server: Running) -> None:
    with server.openai() as client:
        texts = {
            client.completions.create(model="fake", prompt="a", max_tokens=20).choices[0].text
            for _ in range(3)
        }
    assert len(texts) > 1


def test_chat(server: Running) -> None:
    with server.openai() as client:
        answer = client.chat.completions.create(model="fake", messages=MESSAGES, seed=1, max_tokens=9)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("<user>Hello\n<assistant>")


def test_chat_may_use_all_of_the_context(server: Running) -> None:
    with server.openai() as client:
        answer = client.chat.completions.create(
            model="fake", messages=MESSAGES, seed=1, extra_body={"ignore_eos": True}
        )
    assert answer.usage is not None
    assert answer.usage.total_tokens == MAX_MODEL_LEN
    assert answer.choices[0].finish_reason == "length"


def test_streamed_chat(server: Running) -> None:
    with server.openai() as client:
        for seed in range(5):
            arguments: dict[str, Any] = {
                "model": "fake",
                "messages": MESSAGES,
                "seed": seed,
                "max_completion_tokens": 20,
            }
            whole = client.chat.completions.create(**arguments)
            chunks = list(client.chat.completions.create(**arguments, stream=True))
            assert chunks[0].choices[0].delta.role == "assistant"
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text == whole.choices[0].message.content
            reasons = [chunk.choices[0].finish_reason for chunk in chunks]
            assert reasons[-1] == whole.choices[0].finish_reason
            assert set(reasons[:-1]) == {None}


async def test_many_streams_at_once(server: Running) -> None:
    """More than can run at once; each gives the same output as alone."""
    async with server.async_openai() as client:

        async def one(seed: int, stream: bool) -> str:
            if not stream:
                answer = await client.completions.create(model="fake", prompt="abc", seed=seed, max_tokens=20)
                return answer.choices[0].text
            chunks = await client.completions.create(
                model="fake", prompt="abc", seed=seed, max_tokens=20, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in chunks])

        together = await asyncio.gather(*(one(seed, stream=True) for seed in range(24)))
        alone = [await one(seed, stream=False) for seed in range(24)]
    assert together == alone


def test_models(server: Running) -> None:
    with server.openai() as client:
        assert [model.id for model in client.models.list()] == ["fake", "other-name"]
        model = client.models.retrieve("other-name")
        assert model.id == "other-name"
        assert model.model_extra is not None
        assert model.model_extra["max_model_len"] == MAX_MODEL_LEN
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nothing")


def test_the_response_has_the_requested_model_name(server: Running) -> None:
    with server.openai() as client:
        assert client.completions.create(model="other-name", prompt="a").model == "other-name"


def test_prompt_by_token_ids(server: Running) -> None:
    with server.openai() as client:
        by_ids, by_lists, by_text = (
            client.completions.create(model="fake", prompt=prompt, seed=3)
            for prompt in ([3, 4, 5], [[3, 4, 5]], "abc")
        )
    assert by_ids.choices[0].text == by_lists.choices[0].text == by_text.choices[0].text
    assert by_ids.usage and by_ids.usage.prompt_tokens == 3


def test_cached_tokens_are_reported(server: Running) -> None:
    prompt = "a prompt long enough to fill several blocks of the cache, whatever their size"
    with server.openai() as client:
        cached = []
        for _ in range(2):
            usage = client.completions.create(model="fake", prompt=prompt, max_tokens=1).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert 0 < (cached[1] or 0) < len(prompt)


def test_errors_are_the_clients_exceptions(server: Running) -> None:
    with server.openai() as client:
        with pytest.raises(openai.BadRequestError) as wrong:
            client.completions.create(model="fake", prompt="a", temperature=3)
        assert wrong.value.param == "temperature"
        with pytest.raises(openai.NotFoundError) as unknown:
            client.completions.create(model="gpt-9", prompt="a")
        assert unknown.value.code == "model_not_found"
