"""The sampling fields have the same effect and the same errors in every protocol's bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine.server.serving import Running

QUESTION = "How do I start Berth?"
WORDS = {"structured_outputs": {"choice": ["red", "green"]}}


@dataclass(frozen=True)
class Protocol:
    path: str
    most_tokens: str  # its name of the field
    body: dict[str, Any]  # an answer without reasoning
    text: Callable[[Any], str]
    num_tokens: Callable[[Any], int]


CHAT = Protocol(
    "/v1/chat/completions",
    "max_tokens",
    {"messages": [{"role": "user", "content": QUESTION}], "reasoning_effort": "none"},
    lambda answer: answer["choices"][0]["message"]["content"],
    lambda answer: answer["usage"]["completion_tokens"],
)
RESPONSES = Protocol(
    "/v1/responses",
    "max_output_tokens",
    {"input": QUESTION, "reasoning": {"effort": "none"}, "store": False},
    lambda answer: answer["output"][-1]["content"][0]["text"],
    lambda answer: answer["usage"]["output_tokens"],
)
MESSAGES = Protocol(
    "/v1/messages",
    "max_tokens",
    {"messages": [{"role": "user", "content": QUESTION}]},
    lambda answer: answer["content"][-1]["text"],
    lambda answer: answer["usage"]["output_tokens"],
)
PROTOCOLS = pytest.mark.parametrize("protocol", [CHAT, RESPONSES, MESSAGES], ids=lambda one: one.path)


def post(server: Running, protocol: Protocol, *, most: int = 24, **fields: Any) -> tuple[int, Any]:
    body = {**protocol.body, "temperature": 0, protocol.most_tokens: most, **fields}
    with server.http() as client:
        response = client.post(protocol.path, json=body)
        assert "warning" not in response.headers
        return response.status_code, response.json()


def ask(server: Running, protocol: Protocol, **fields: Any) -> Any:
    status, answer = post(server, protocol, **fields)
    assert status == 200, answer
    return answer


def ids_of(server: Running, text: str) -> list[int]:
    with server.http() as client:
        answer = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    ids: list[int] = answer["tokens"]
    return ids


@PROTOCOLS
def test_only_allowed_tokens_are_generated(protocol: Protocol, demo_server: Running) -> None:
    token, *_ = ids_of(demo_server, " model")
    answer = ask(demo_server, protocol, allowed_token_ids=[token], most=3)
    assert protocol.text(answer).split() == ["model"] * 3


@PROTOCOLS
def test_bad_words_are_not_generated(protocol: Protocol, demo_server: Running) -> None:
    word = protocol.text(ask(demo_server, protocol)).split()[0]
    assert word not in protocol.text(ask(demo_server, protocol, bad_words=[word])).split()


@PROTOCOLS
def test_an_output_has_at_least_min_tokens(protocol: Protocol, demo_server: Running) -> None:
    usual = protocol.num_tokens(ask(demo_server, protocol, most=200))
    longer = ask(demo_server, protocol, most=usual + 4, min_tokens=usual + 4)
    assert protocol.num_tokens(longer) == usual + 4


@PROTOCOLS
def test_an_output_can_be_constrained(protocol: Protocol, demo_server: Running) -> None:
    assert protocol.text(ask(demo_server, protocol, **WORDS)) in ("red", "green")


@pytest.mark.parametrize("protocol", [RESPONSES, MESSAGES], ids=lambda one: one.path)
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1, "seed": 3},
        {"temperature": 1, "seed": 3, "min_p": 0.2},
        {"temperature": 1, "seed": 3, "top_k": 2, "top_p": 0.9},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"repetition_penalty": 2.0},
        {"logit_bias": {"5": 100.0}},
        {"stop_token_ids": [10, 11, 12, 13]},
        {"ignore_eos": True, "skip_special_tokens": False},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_a_field_has_the_same_effect_as_in_chats(
    protocol: Protocol, fields: dict[str, Any], demo_server: Running
) -> None:
    in_chat = ask(demo_server, CHAT, **fields)
    ours = ask(demo_server, protocol, **fields)
    assert protocol.num_tokens(ours) == CHAT.num_tokens(in_chat)
    assert protocol.text(ours) == CHAT.text(in_chat)


@PROTOCOLS
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [2**40]}, "allowed_token_ids"),
        ({"bad_words": [5]}, "bad_words[0]"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 25}, "min_tokens"),
        ({"min_p": 2}, "min_p"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_an_invalid_field_is_named(
    protocol: Protocol, fields: dict[str, Any], param: str, demo_server: Running
) -> None:
    status, answer = post(demo_server, protocol, **fields)
    assert (status, param in answer["error"]["message"]) == (400, True), answer


@PROTOCOLS
def test_a_conflict_of_formats_is_named_as_the_client_wrote_it(
    protocol: Protocol, demo_server: Running
) -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        CHAT.path: ("response_format", {"response_format": {"type": "json_object"}}),
        RESPONSES.path: ("text.format", {"text": {"format": schema}}),
        MESSAGES.path: ("output_format", {"output_format": schema}),
    }
    name, fields = cases[protocol.path]
    _, answer = post(demo_server, protocol, **{**WORDS, **fields})
    assert f"structured_outputs conflicts with {name}" in answer["error"]["message"]


@PROTOCOLS
def test_conflicting_numbers_of_tokens_are_named_as_the_client_wrote_them(
    protocol: Protocol, demo_server: Running
) -> None:
    _, answer = post(demo_server, protocol, min_tokens=25)
    assert f"min_tokens 25 is greater than {protocol.most_tokens} 24." in answer["error"]["message"]
