"""One request, whatever it holds, doesn't hold up another client's stream: a real engine, a real model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from engine.server import limits
from tests.engine.server.disturbance import AttackedEngine, attacked_engine
from tests.engine.server.in_process import CHAT, COMPLETIONS

MOST_ADDED_S = 0.25  # to the longest gap that the stream had before
TRIES = 4  # other work on a machine makes a gap longer, never shorter
MOST_MEMORY = 1.5  # of a body
BESIDE = 96 * 2**20  # bytes that any request may take

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


def many(item: str, number: int) -> bytes:
    return f"[{','.join([item] * number)}]".encode()


def completion(fields: bytes) -> bytes:
    return b'{"prompt": "a", "max_tokens": 2, ' + fields + b"}"


def chat(fields: bytes) -> bytes:
    return b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, ' + fields + b"}"


TURN = '{"role":"user","content":"a b"}'
FIELDS = b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}"
PROMPT = json.dumps([7] * 1900)
TEXT = b'"' + b"a b c d " * 3_500_000 + b'"'

ATTACKS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "empty lists": lambda: (COMPLETIONS, b'{"prompt": ' + many("[]", 10_000_000) + b"}"),
    "messages": lambda: (CHAT, b'{"messages": ' + many(TURN, 1_000_000) + b"}"),
    "as many messages as are taken": lambda: (CHAT, b'{"messages": ' + many(TURN, 10_000) + b"}"),
    "items": lambda: (RESPONSES, b'{"input": ' + many(TURN, 1_000_000) + b"}"),
    "as many items as are taken": lambda: (RESPONSES, b'{"input": ' + many(TURN, 10_000) + b"}"),
    "Anthropic's messages": lambda: (
        MESSAGES,
        b'{"max_tokens": 2, "messages": ' + many(TURN, 1_000_000) + b"}",
    ),
    "text parts": lambda: (
        CHAT,
        b'{"messages": [{"role": "user", "content": '
        + many('{"type":"text","text":"a"}', 1_000_000)
        + b"}]}",
    ),
    "fields": lambda: (COMPLETIONS, FIELDS),
    "token ids": lambda: (COMPLETIONS, b'{"prompt": ' + many("1", 15_000_000) + b"}"),
    "biases": lambda: (COMPLETIONS, completion(b'"logit_bias": ' + FIELDS)),
    "allowed tokens": lambda: (
        COMPLETIONS,
        completion(b'"n": 128, "allowed_token_ids": ' + many("7", 5_000_000)),
    ),
    "bad words": lambda: (
        COMPLETIONS,
        completion(b'"n": 128, "bad_words": ' + many(json.dumps("a b " * 1750), 4096)),
    ),
    "logprobs of a hundred prompts": lambda: (
        COMPLETIONS,
        b'{"max_tokens": 1, "prompt_logprobs": 20, "prompt": ' + many(PROMPT, 100) + b"}",
    ),
    "logprobs of as many prompts as are taken": lambda: (
        COMPLETIONS,
        b'{"max_tokens": 1, "prompt_logprobs": 20, "prompt": ' + many(PROMPT, 4) + b"}",
    ),
    "tokens to text": lambda: ("/detokenize", b'{"tokens": ' + many("100", 7_500_000) + b"}"),
    "as many tokens as are taken": lambda: (
        "/detokenize",
        b'{"tokens": ' + many("100", limits.MAX_DETOKENIZED) + b"}",
    ),
    "text to tokens": lambda: ("/tokenize", b'{"prompt": ' + TEXT + b"}"),
    "stop strings": lambda: (COMPLETIONS, completion(b'"stop": ' + many(json.dumps("a" * 7_000_000), 4))),
    "template variables": lambda: (CHAT, chat(b'"chat_template_kwargs": ' + FIELDS)),
    "documents": lambda: (CHAT, chat(b'"documents": ' + many('{"a":1}', 1_000_000))),
    "metadata": lambda: (RESPONSES, b'{"input": "a", "metadata": ' + FIELDS + b"}"),
    "nesting": lambda: (
        CHAT,
        chat(b'"chat_template_kwargs": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ),
    "a tool's description": lambda: (
        CHAT,
        chat(b'"tools": [{"type": "function", "function": {"name": "f", "description": ' + TEXT + b"}}]"),
    ),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[AttackedEngine]:
    with attacked_engine() as engine:
        yield engine


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_stream_goes_on_while_another_client_sends(engine: AttackedEngine, name: str) -> None:
    path, content = ATTACKS[name]()
    for tries_left in reversed(range(TRIES)):
        result = engine.disturb(path, content)
        assert engine.process.poll() is None
        assert result.response is not None, "no answer"
        assert result.response.status_code in (200, 400), result.response.text[:300]
        added_s = result.gap_s - result.undisturbed_s
        if added_s <= MOST_ADDED_S and result.grown_bytes <= MOST_MEMORY * len(content) + BESIDE:
            return
        assert tries_left, f"{added_s:.2f} s longer than before, {result.grown_bytes >> 20} MB more"
