"""`POST /generate` on a small inner application; test_protocol_wire.py has real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.protocols.app import ProtocolApp
from api.protocols.generate import GenerateProtocol, GenerateRequest
from tests.api.protocol_apps import SSE, USAGE, Inner, ask, chat_answer, chat_stream


def app_around(inner: Inner, **options: Any) -> ProtocolApp:
    return ProtocolApp(
        inner, [GenerateProtocol()], protocol_of=lambda _: None, default_model="standard", **options
    )


async def test_a_prompt_becomes_a_chat_and_its_response_text() -> None:
    inner = Inner([chat_answer("Hi.")])
    got = await ask(app_around(inner), "/generate", {"prompt": "Hello", "model": "demo"})
    assert (got.status, got.json) == (
        200,
        {"text": "Hi.", "finish_reason": "stop", "usage": USAGE, "model": "demo"},
    )
    assert inner.asked == {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    assert (inner.scopes[0]["path"], inner.scopes[0]["raw_path"]) == (
        "/v1/chat/completions",
        b"/v1/chat/completions",
    )


async def test_previous_turns_are_in_the_chat_in_order() -> None:
    inner = Inner([chat_answer()])
    asked = {"system_info": "Be kind.", "history_input": ["a", "c"], "history_output": ["b", "d"]}
    await ask(app_around(inner), "/generate", {"prompt": "e", **asked})
    assert [(m["role"], m["content"]) for m in inner.asked["messages"]] == [
        ("system", "Be kind."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
    ]
    assert inner.asked["model"] == "standard"


async def test_only_given_sampling_fields_are_passed_on() -> None:
    inner = Inner([chat_answer()])
    sampling = {
        "max_tokens": 5, "temperature": 0, "top_k": 3, "min_p": 0.1, "seed": 7, "stop": ["x"],
        "repetition_penalty": 1.1, "logit_bias": {"5": 1.5}, "ignore_eos": True, "keep_alive": "5m",
    }  # fmt: skip
    await ask(app_around(inner), "/generate", {"prompt": "e", "top_p": None, **sampling})
    assert {k: v for k, v in inner.asked.items() if k not in ("messages", "model")} == sampling


async def test_fields_that_are_not_known_reach_the_engine_which_decides_about_them() -> None:
    inner = Inner([chat_answer()], headers=[(b"warning", b'299 berth "ignored: temprature (unknown field)"')])
    others = {"allowed_token_ids": [5], "temprature": 1, "chat_template_kwargs": {"a": [None]}}
    got = await ask(app_around(inner), "/generate", {"prompt": "e", "n": None, "mood": None, **others})
    assert {k: v for k, v in inner.asked.items() if k not in ("messages", "model")} == others
    assert b"temprature" in (got.header(b"warning") or b"")


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning_is_separate_from_the_text(field: str) -> None:
    got = await ask(app_around(Inner([chat_answer("4", **{field: "2+2"})])), "/generate", {"prompt": "?"})
    assert (got.json["text"], got.json["reasoning"]) == ("4", "2+2")


async def test_a_response_without_text_has_an_empty_one() -> None:
    got = await ask(app_around(Inner([chat_answer(content=None)])), "/generate", {"prompt": "?"})
    assert got.json["text"] == ""


async def test_a_stream_has_pieces_of_text_then_the_end() -> None:
    inner = Inner(chat_stream("Hel", "lo"), headers=[SSE, (b"x-request-id", b"abc")])
    got = await ask(app_around(inner), "/generate", {"prompt": "?", "stream": True})
    assert got.events == [
        {"text": "Hel"},
        {"text": "lo"},
        {"text": "", "finish_reason": "stop", "usage": USAGE, "model": "demo"},
        "[DONE]",
    ]
    assert got.is_whole
    assert got.header(b"content-type") == b"text/event-stream"
    assert got.header(b"x-request-id") == b"abc"
    assert got.header(b"x-accel-buffering") == b"no"
    assert inner.asked["stream"] is True
    assert inner.asked["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{", 400, None, "invalid_json"),
        (b"[]", 422, None, "model_type"),
        (b'{"prompt": "\xff"}', 400, None, "invalid_json"),
        ({}, 422, "prompt", "missing"),
        ({"prompt": 5}, 422, "prompt", "string_type"),
        ({"prompt": "a", "stop": 5}, 422, "stop", "string_type"),
        ({"prompt": "a", "history_input": ["a", 1]}, 422, "history_input.1", "string_type"),
        ({"prompt": "a", "n": 2}, 422, "n", "invalid_request"),
        ({"prompt": "a", "tools": []}, 422, "tools", "invalid_request"),
        ({"prompt": "a", "messages": []}, 422, "messages", "invalid_request"),
        ({"prompt": "a", "history_input": ["x"]}, 422, "history_output", "history_mismatch"),
        (b'{"prompt": "a", "temperature": NaN}', 422, "temperature", "finite_number"),
    ],
)
async def test_an_invalid_field_is_named_and_no_request_is_sent(
    body: Any, status: int, param: str | None, code: str
) -> None:
    inner = Inner([chat_answer()])
    got = await ask(app_around(inner), "/generate", body, headers=[(b"x-request-id", b"mine")])
    error = got.json["error"]
    assert (got.status, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert got.header(b"x-request-id") == b"mine"
    assert inner.scopes == []


async def test_only_post_is_accepted() -> None:
    inner = Inner()
    got = await ask(app_around(inner), "/generate", method="GET")
    assert (got.status, got.header(b"allow")) == (405, b"POST")
    assert inner.scopes == []


async def test_a_too_long_body_is_refused() -> None:
    inner = Inner()
    app = app_around(inner, max_body_bytes=100)
    got = await ask(app, "/generate", body_pieces=[b'{"prompt":"', b"a" * 100, b'"}'])
    assert (got.status, got.json["error"]["code"]) == (413, "body_too_large")
    assert inner.scopes == []


async def test_a_long_request_is_translated_too() -> None:
    inner = Inner([chat_answer()])
    got = await ask(app_around(inner), "/generate", {"prompt": "word " * 100_000})
    assert got.status == 200
    assert len(inner.asked["messages"][0]["content"]) == 500_000


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(GenerateRequest.model_fields)) | st.text(max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(FIELDS, JSON_VALUES, max_size=4), st.text(st.characters()))
def test_every_request_is_served_or_refused(fields: dict[str, Any], prompt: str) -> None:
    inner = Inner([chat_answer()])
    got = asyncio.run(ask(app_around(inner), "/generate", {"prompt": prompt, **fields}))
    assert got.status in (200, 400, 422)
    assert bool(inner.scopes) is (got.status == 200)
    assert inner.scopes == [] or set(inner.asked) >= {"model", "messages"}


async def test_a_lone_surrogate_is_refused() -> None:
    got = await ask(app_around(Inner()), "/generate", b'{"prompt": "\\ud800"}')
    assert got.status == 400
