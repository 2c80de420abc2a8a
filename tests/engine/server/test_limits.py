"""Every limit of docs/limits.md: a request at the limit is accepted in time, one above is refused at once."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from docs.limits_table import body_models
from engine.errors import InvalidRequest
from engine.server.protocol import limits
from engine.server.protocol.body_reader import check
from engine.server.protocol.json_budget import find_json_excess
from engine.server.protocol.request_body import Strict
from engine.server.protocol.size_check import LimitExceeded, check_sizes, tree_of
from engine.server.protocol.size_limit import Measure, SizeLimit
from tests.engine.server.field_walk import is_limited, places_of
from tests.engine.server.in_process import CHAT, COMPLETIONS, App, app_in_process

IN_TIME_S = 8.0  # CPU time of all threads; many times the expected value

ENTRIES: dict[str, Any] = {
    "messages": {"role": "user", "content": "a"},
    "messages[].content": {"type": "text", "text": "a"},
    "messages[].tool_calls": {"function": {"name": "f"}},
    "input": {"role": "user", "content": "a"},
    "input[].content": {"type": "input_text", "text": "a"},
    "tools": {"type": "function", "name": "f", "function": {"name": "f"}, "input_schema": {}},
    "prompt": "a",
    "stop_token_ids": 1,
    "allowed_token_ids": 1,
    "tokens": 1,
}
OBJECTS = {"logit_bias", "metadata", "messages[]", "messages[][]", "input[]"}
"""Paths whose entries are fields."""

BODY_OF = {limit: model for model in reversed(body_models()) for limit in model.all_size_limits()}
CASES = {
    f"{limit.path}, {limit.most} {limit.measure.value}{' in all' if limit.total else ''}": (model, limit)
    for limit, model in BODY_OF.items()
    if limit.measure is not Measure.TEXT  # checked when the text is tokenized
}


def holding(limit: SizeLimit, size: int) -> dict[str, Any]:
    """A body for the limit; other fields do not matter."""
    value: Any
    match limit.measure:
        case Measure.CHARS:
            value = "a" * size
        case Measure.VALUES:
            value = {"a": [1] * (size - 2)}
        case _ if limit.path in OBJECTS:
            value = {str(number): 1 for number in range(size)}
        case _:
            value = [ENTRIES.get(limit.path, "a")] * size
    for step in reversed(limit.path.split(".")):
        for _ in range(step.count("[]")):
            value = [value]
        value = {step.rstrip("[]"): value}
    body: dict[str, Any] = value
    return body


@pytest.mark.parametrize("name", CASES)
def test_a_body_above_a_limit_is_refused_by_name_and_one_at_it_is_accepted(name: str) -> None:
    model, limit = CASES[name]
    began = time.process_time()
    try:
        check(holding(limit, limit.most), model)
    except LimitExceeded as error:
        pytest.fail(f"at the limit: {error}")
    except InvalidRequest:
        pass  # other fields are missing
    with pytest.raises(LimitExceeded) as caught:
        check(holding(limit, limit.most + 1), model)
    assert time.process_time() - began < IN_TIME_S
    assert str(limit.most) in caught.value.message
    assert str(limit.most + 1) in caught.value.message
    assert caught.value.param is not None
    assert caught.value.param.split("[")[0] == limit.path.split("[")[0]


def test_every_field_that_can_be_large_has_a_limit() -> None:
    """If this fails, add a limit for the field in engine/server/protocol/body_limits.py."""
    forgotten = [
        f"{model.__name__}: {place.kind} {place.path}"
        for model in body_models()
        for place in sorted(places_of(model))
        if place.kind != "number" and not is_limited(place, model.all_size_limits())
    ]
    assert forgotten == []


def test_every_integer_has_a_limit() -> None:
    """Either the field's own, or one named in engine/server/protocol/limits.py."""
    forgotten = {
        place.path
        for model in body_models()
        for place in places_of(model)
        if place.kind == "number" and place.path.rpartition(".")[2].rstrip("[]") not in limits.BOUNDED_BY
    }
    assert forgotten == set()


def test_a_field_without_a_limit_is_found() -> None:
    class Forgetful(Strict):
        listed: list[str]
        told: str | None = None
        table: dict[str, int] = {}  # noqa: RUF012 - a field

    found = {(place.path, place.kind) for place in places_of(Forgetful)}
    assert found == {("listed", "list"), ("listed[]", "string"), ("told", "string"), ("table", "object")}
    assert not any(is_limited(place, Forgetful.all_size_limits()) for place in places_of(Forgetful))


def test_total_limits_sum_over_all_entries() -> None:
    limit = SizeLimit("messages[].content", 10, total=True)
    body = {"messages": [{"content": ["a"] * 6}, {"content": "text"}, {"content": ["a"] * 4}]}
    check_sizes(body, tree_of((limit,)))
    body["messages"].append({"content": ["a"]})
    with pytest.raises(LimitExceeded, match=r"messages\[\]\.content: at most 10 entries in all, not 11"):
        check_sizes(body, tree_of((limit,)))


# The text as a whole

FIELDS = b'{"a": {%s}}'


@pytest.mark.parametrize(
    ("raw", "is_within"),
    [
        (b'{"a": "' + b"[],{}," * 1_000_000 + b'"}', True),
        (b'{"a": "' + b'\\",[' * 1_000_000 + b'"}', True),
        (b'{"a": "' + b"\\\\" * 300_001 + b'", "b": "' + b"[[[," * 800_000 + b'"}', True),
        (b'{"url": "data:image/png;base64,' + b"iVBORw0K" * 2_500_000 + b'"}', True),
        (b'{"a": [' + b"1," * (limits.MAX_JSON_VALUES - 3) + b"1]}", True),
        (b'{"a": [' + b"1," * (limits.MAX_JSON_VALUES + 1) + b"1]}", False),
        (b'{"a": [' + b"[]," * (limits.MAX_JSON_CONTAINERS - 3) + b"[]]}", True),
        (b'{"a": [' + b"[]," * (limits.MAX_JSON_CONTAINERS + 1) + b"[]]}", False),
        (FIELDS % b",".join(b'"k%d":1' % n for n in range(limits.MAX_JSON_MEMBERS - 1)), True),
        (FIELDS % b",".join(b'"k%d":1' % n for n in range(limits.MAX_JSON_MEMBERS + 1)), False),
        (b'{"a": "' + b"\\n" * limits.MAX_JSON_ESCAPES + b'"}', True),
        (b'{"a": "' + b"\\n" * (limits.MAX_JSON_ESCAPES + 1) + b'"}', False),
        (b'{"a": "' + b"\\\\" * limits.MAX_JSON_ESCAPES + b'"}', True),
        (b'{"a": "' + b"\\\\" * (limits.MAX_JSON_ESCAPES + 1) + b'"}', False),
        (b'{"a": ["\\\\",' + b'"x",[],' * 500_000 + b"[]]}", False),
    ],
)
def test_only_characters_outside_strings_count(raw: bytes, is_within: bool) -> None:
    assert (find_json_excess(raw) is None) == is_within


def test_escapes_and_strings_across_windows_are_parsed_correctly() -> None:
    """Many lengths, since the position of a window's end must not matter."""
    for shift in range(6):
        filler = b"a" * (2**18 - 12 + shift)
        text = b'{"a": "' + filler + b'\\\\\\"[,' * 3 + b'\\\\", "b": "' + b",[" * 1_200_000 + b'"}'
        assert json.loads(text)["b"].startswith(",[")
        assert find_json_excess(text) is None, shift


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        yield app


def nested(depth: int) -> bytes:
    inner = b"[" * depth + b"]" * depth
    return b'{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": ' + inner + b"}}"


ABOVE: dict[str, tuple[str, bytes | dict[str, Any], str | None, str]] = {
    "nesting": (CHAT, nested(limits.MAX_JSON_DEPTH), None, "recursion limit"),
    "n": (COMPLETIONS, {"prompt": "a", "n": limits.MAX_CHOICES + 1}, "n", "128"),
    "sequences": (COMPLETIONS, {"prompt": ["a"] * 17, "n": 128}, "n", str(limits.MAX_SEQUENCES)),
    "text": (
        "/tokenize",
        {"prompt": "a" * (limits.MAX_TEXT_BYTES + 1)},
        "prompt",
        str(limits.MAX_TEXT_BYTES),
    ),
    "the text of a chat": (
        "/tokenize",
        {"messages": [{"role": "user", "content": "a" * (limits.MAX_TEXT_BYTES // 4)}] * 4},
        "prompt",
        str(limits.MAX_TEXT_BYTES),
    ),
    "a bad word": (
        COMPLETIONS,
        {"prompt": "a", "bad_words": ["a" * (limits.MAX_BAD_WORD_TOKENS + 1)]},
        "bad_words[0]",
        str(limits.MAX_BAD_WORD_TOKENS),
    ),
    "logprobs of prompts": (
        COMPLETIONS,
        {"prompt": ["a" * 1000] * 100, "prompt_logprobs": 20},
        "prompt_logprobs",
        str(limits.MAX_PROMPT_LOGPROBS),
    ),
    "logprobs of an answer": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "a"}],
            "n": 128,
            "max_tokens": 1900,
            "logprobs": True,
            "top_logprobs": 20,
        },
        "top_logprobs",
        str(limits.MAX_ANSWER_LOGPROBS),
    ),
    "logprobs of echoed prompts": (
        COMPLETIONS,
        {"prompt": ["a" * 1000] * 100, "logprobs": 20, "echo": True},
        "logprobs",
        str(limits.MAX_PROMPT_LOGPROBS),
    ),
    "beams": (
        COMPLETIONS,
        {"prompt": "a", "n": limits.MAX_BEAMS + 1, "use_beam_search": True},
        "n",
        f"{limits.MAX_BEAMS + 1} with use_beam_search: the maximum is {limits.MAX_BEAMS}",
    ),
    "logprobs": (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs", "20"),
    "logprobs of chats": (
        CHAT,
        {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        "20",
    ),
    "a repetition penalty": (
        COMPLETIONS,
        {"prompt": "a", "repetition_penalty": 1e-300},
        "repetition_penalty",
        "0.01",
    ),
    "a bias of a long key": (
        COMPLETIONS,
        {"prompt": "a", "logit_bias": {"9" * 5000: 1}},
        "logit_bias",
        "token ids",
    ),
}


@pytest.mark.parametrize("name", ABOVE)
async def test_requested_amounts_are_limited(app: App, name: str) -> None:
    path, body, param, said = ABOVE[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    began = time.process_time()
    response = await app.http.post(path, content=content)
    assert time.process_time() - began < IN_TIME_S
    assert response.status_code == 400, response.text[:300]
    error = response.json()["error"]
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-300},
        {"temperature": 1e-5},
        {"top_p": 5e-324},
        {"min_p": 5e-324},
        {"top_k": 10**300},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 10},
        {"presence_penalty": 2, "frequency_penalty": -2},
        {"logit_bias": {"5": 100, "05": -100}},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop": "a" * limits.MAX_STOP_CHARS},
        {"bad_words": ["a" * limits.MAX_BAD_WORD_TOKENS]},
        {"n": limits.MAX_CHOICES},
    ],
)
async def test_values_at_their_limits_are_accepted(app: App, fields: dict[str, Any]) -> None:
    app.will_say("abc")
    answer = await app.ask(COMPLETIONS, prompt="b", max_tokens=3, **fields)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


AT_THE_CAP: dict[str, Any] = {
    "allowed_token_ids": [5] * limits.MAX_ALLOWED_TOKENS,
    "bad_words": ["ab"] * limits.MAX_LISTED,
    "cache_salt": "a" * limits.MAX_SALT,
    "keep_alive": "1" * limits.MAX_DURATION_CHARS,
    "logprob_token_ids": [5] * limits.MAX_NAMED_LOGPROBS,
    "prompt_cache_key": "a" * limits.MAX_LABEL_CHARS,
    "request_id": "a" * limits.MAX_REQUEST_ID_CHARS,
    "safety_identifier": "a" * limits.MAX_LABEL_CHARS,
    "stop": ["ab"] * limits.MAX_STOPS,
    "stop_token_ids": [5] * limits.MAX_LISTED,
    "structured_outputs": {"choice": ["abc", *(f"a{number}" for number in range(1, limits.MAX_LISTED))]},
    "user": "a" * limits.MAX_LABEL_CHARS,
}


@pytest.mark.parametrize("name", AT_THE_CAP)
async def test_a_request_at_a_limit_is_served_in_time(app: App, name: str) -> None:
    app.will_say("abc")
    began = time.process_time()
    fields = {name: AT_THE_CAP[name], **({"logprobs": 1} if name == "logprob_token_ids" else {})}
    await app.ask(COMPLETIONS, prompt="b", max_tokens=3, **fields)
    assert time.process_time() - began < IN_TIME_S


async def test_numbers_of_thousands_of_digits_are_400(app: App) -> None:
    for name in ("max_tokens", "min_tokens", "truncate_prompt_tokens", "n", "seed", "priority", "logprobs"):
        content = b'{"prompt": "a", "' + name.encode() + b'": ' + b"9" * 4299 + b"}"
        response = await app.http.post(COMPLETIONS, content=content)
        assert response.status_code == 400, (name, response.text[:200])


async def test_a_text_at_its_limit_is_tokenized_in_time(app: App) -> None:
    began = time.process_time()
    status, answer = await app.post("/tokenize", prompt="a b " * (limits.MAX_TEXT_BYTES // 4))
    assert status == 200 and answer["count"] > 100_000
    assert time.process_time() - began < IN_TIME_S


async def test_large_agent_requests_are_within_the_limits(app: App) -> None:
    """500 turns and 100 tools of 10 KB exceed this model's context, but not the server's limits."""
    schema = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "description": "x" * 60} for n in range(100)},
    }
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": schema}} for n in range(100)]
    messages = [{"role": "user", "content": [{"type": "text", "text": "a b c"}]}] * 500
    status, answer = await app.post("/tokenize", messages=messages, tools=tools)
    assert status == 200 and answer["count"] > 1000
