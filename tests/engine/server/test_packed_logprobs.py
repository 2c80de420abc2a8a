from __future__ import annotations

import json

import pytest

from engine.core.types import PositionLogprobs, TokenLogprob
from engine.server.openai.packed_logprobs import PackedLogprobs, Rows

POSITIONS = [
    PositionLogprobs(TokenLogprob(5, -0.1, 1), (TokenLogprob(5, -0.1, 1), TokenLogprob(9, -2.345678901, 2))),
    PositionLogprobs(TokenLogprob(200_000, float("-inf"), 0)),
    PositionLogprobs(TokenLogprob(0, 0.0, 1), (TokenLogprob(0, 0.0, 1),)),
]


def packed() -> PackedLogprobs:
    logprobs = PackedLogprobs()
    logprobs.extend(POSITIONS[:1])
    logprobs.extend([])
    logprobs.extend(POSITIONS[1:])
    return logprobs


def test_packed_logprobs_are_unchanged_when_unpacked() -> None:
    logprobs = packed()
    assert list(logprobs) == POSITIONS and logprobs[1] == POSITIONS[1] and logprobs[1:] == POSITIONS[1:]
    assert len(logprobs) == 3 and logprobs.num_entries == 6
    with pytest.raises(IndexError):
        logprobs[3]


def test_rows_yield_a_list_in_parts() -> None:
    before = ["a", "b"]
    rows = before + Rows(packed(), lambda position: position.chosen.token_id)
    assert list(rows.parts(2)) == [["a", "b"], [5, 200_000], [0]]
    assert json.dumps([entry for part in rows.parts(100) for entry in part]) == '["a", "b", 5, 200000, 0]'
