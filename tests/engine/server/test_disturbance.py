"""No request, whatever it contains, stalls another client's stream: a real engine and model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from engine.server.protocol import limits
from tests.engine.server.disturbance import AttackedEngine, attacked_engine
from tests.engine.server.in_process import CHAT, COMPLETIONS

MOST_ADDED_S = 0.25  # on top of the longest gap before
TRIES = 3  # other load on the machine only makes gaps longer
MOST_MEMORY = 1.5  # size of a body
BESIDE = 96 * 2**20  # memory that any request may use


def many(item: str, number: int) -> bytes:
    return f"[{','.join([item] * number)}]".encode()


TURN = '{"role":"user","content":"a b"}'
PROMPT = json.dumps([7] * 1900)

# `make attack` measures the full set; these are representative.
ATTACKS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "more lists than are parsed": lambda: (COMPLETIONS, b'{"prompt": ' + many("[]", 10_000_000) + b"}"),
    "more messages than are taken": lambda: (CHAT, b'{"messages": ' + many(TURN, 1_000_000) + b"}"),
    "a list for each of many choices": lambda: (
        COMPLETIONS,
        b'{"prompt": "a", "max_tokens": 2, "n": 128, "allowed_token_ids": '
        + many("7", limits.MAX_ALLOWED_TOKENS)
        + b"}",
    ),
    "logprobs of a hundred prompts": lambda: (
        COMPLETIONS,
        b'{"max_tokens": 1, "prompt_logprobs": 20, "prompt": ' + many(PROMPT, 100) + b"}",
    ),
    "as many tokens as are taken": lambda: (
        "/detokenize",
        b'{"tokens": ' + many("100", limits.MAX_DETOKENIZED) + b"}",
    ),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[AttackedEngine]:
    with attacked_engine() as engine:
        yield engine


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_stream_continues_while_another_client_sends(engine: AttackedEngine, name: str) -> None:
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
