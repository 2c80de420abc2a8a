"""Log-probabilities of output and prompt equal plain transformers, however requests are batched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.engine_core import EngineCore
from engine.core.types import (
    ALL_LOGPROBS,
    EngineRequest,
    FinishReason,
    PositionLogprobs,
    SamplingParams,
    TokenDelta,
)
from engine.execution import runner
from engine.execution.sampling.logprobs import position_logprobs, raw_logprobs
from tests.engine.test_generation import core_of, request_of
from tests.engine.tiny_models import VOCAB_SIZE, Reference, prompt_of

TOLERANCE = 1e-4


# By themselves


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12),
    st.integers(0, 11),
    st.integers(0, 14) | st.just(ALL_LOGPROBS),
)
def test_ranks_and_the_most_likely_tokens(logits: list[float], token: int, num_top: int) -> None:
    """With many equal logits."""
    token %= len(logits)
    (position,) = position_logprobs(raw_logprobs(torch.tensor([logits])), [token], [num_top])
    total = sum(math.exp(logit) for logit in logits)
    every = {i: math.log(math.exp(logit) / total) for i, logit in enumerate(logits)}
    rank = {i: 1 + sum(other > logit for other in logits) for i, logit in enumerate(logits)}
    count = len(logits) if num_top == ALL_LOGPROBS else min(num_top, len(logits))
    assert len(position.top) == count
    for each in (position.chosen, *position.top):
        assert each.logprob == pytest.approx(every[each.token_id], abs=1e-5)
        assert each.rank == rank[each.token_id]
    assert [t.rank for t in position.top] == sorted(rank.values())[:count]
    assert len({t.token_id for t in position.top}) == count
    assert (position.chosen in position.top) == (position.chosen.rank <= count)
    if count == len(logits):
        assert sum(math.exp(t.logprob) for t in position.top) == pytest.approx(1, abs=1e-5)


# Of a model


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen3-tied")


def run(core: EngineCore, requests: Sequence[EngineRequest]) -> dict[str, list[TokenDelta]]:
    for request in requests:
        core.add(request)
    deltas: dict[str, list[TokenDelta]] = {request.request_id: [] for request in requests}
    while core.has_work:
        for delta in core.step():
            assert delta.error is None
            deltas[delta.request_id].append(delta)
        core.check_integrity()
    return deltas


def output_of(deltas: Sequence[TokenDelta]) -> tuple[list[int], list[PositionLogprobs]]:
    tokens = [token for delta in deltas for token in delta.token_ids]
    return tokens, [position for delta in deltas for position in delta.logprobs]


def assert_true(positions: Sequence[PositionLogprobs], tokens: Sequence[int], expected: torch.Tensor) -> None:
    """`expected` [n, vocab_size] are the reference's logits at the position before each of `tokens`."""
    logprobs = expected.log_softmax(-1)
    assert len(positions) == len(tokens) == len(logprobs)
    for position, token, row in zip(positions, tokens, logprobs, strict=True):
        assert position.chosen.token_id == token
        assert position.chosen.logprob == pytest.approx(float(row[token]), abs=TOLERANCE)
        assert position.chosen.rank == 1 + int((row > row[token]).sum())
        values, ids = row.topk(len(position.top))
        assert [t.token_id for t in position.top] == ids.tolist()
        assert [t.logprob for t in position.top] == pytest.approx(values.tolist(), abs=TOLERANCE)


LENGTHS = (1, 2, 17, 40, 71)


def asking(length: int, max_tokens: int = 9) -> EngineRequest:
    # Sampling parameters don't change the logprobs of the raw distribution.
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=1.3,
        seed=length,
        presence_penalty=1.5,
        logit_bias={7: 4.0},
        ignore_eos=True,
        logprobs=4,
        prompt_logprobs=2,
    )
    return request_of(str(length), prompt_of(length), params)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 11, "max_num_seqs": 8},
        {"block_size": 2, "num_gpu_blocks_override": 41, "max_model_len": 80},  # preempts
    ],
    ids=["whole", "chunked", "preempted"],
)
def test_logprobs_equal_those_of_transformers(
    model: Path, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_SCORED_LOGITS", 5 * VOCAB_SIZE)  # in slices of five rows
    reference = Reference(model)
    core = core_of(model, **options)
    requests = [asking(length) for length in LENGTHS]
    # A prompt in the prefix cache is computed again for its logprobs, and only then.
    run(core, [request_of("before", prompt_of(71), SamplingParams(max_tokens=1))])
    deltas = run(core, requests)
    for request in requests:
        own, prompt = deltas[request.request_id], list(request.prompt_token_ids)
        tokens, positions = output_of(own)
        expected = reference.logits([*prompt, *tokens])
        assert_true(positions, tokens, expected[len(prompt) - 1 : -1])
        assert own[0].prompt_logprobs is not None and own[0].prompt_logprobs[0] is None
        returned = [position for position in own[0].prompt_logprobs if position is not None]
        assert_true(returned, prompt[1:], expected[: len(prompt) - 1])
        assert all(delta.prompt_logprobs is None for delta in own[1:])
        assert own[0].num_cached_tokens == 0
    assert (core.stats().num_preemptions > 0) == ("num_gpu_blocks_override" in options)
    assert core.stats().kv_cache_usage == 0


def test_the_prompt_only(model: Path) -> None:
    core = core_of(model, max_model_len=71)
    requests = [asking(length, max_tokens=0) for length in LENGTHS]
    plain = request_of("plain", prompt_of(71), SamplingParams(max_tokens=0))
    deltas = run(core, [*requests, plain])
    for request in requests:
        (delta,) = deltas[request.request_id]
        assert (delta.token_ids, delta.logprobs, delta.finish_reason) == ((), (), FinishReason.LENGTH)
        assert delta.prompt_logprobs is not None
        assert len(delta.prompt_logprobs) == len(request.prompt_token_ids)
    assert [delta.prompt_logprobs for delta in deltas["plain"]] == [None]
    stats = core.stats()
    assert (stats.generation_tokens, stats.prompt_tokens) == (0, sum(LENGTHS) + 71)


def test_a_row_alone_and_in_a_batch(model: Path) -> None:
    """The guarantee in float32: the same greedy tokens, and logprobs equal except for rounding.

    The order of additions in a matrix product depends on how many rows it has, so not each bit is the same.
    """
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True, logprobs=3)
    requests = [request_of(str(length), prompt_of(length), params) for length in (3, 18, 33, 64)]
    alone = {r.request_id: output_of(run(core_of(model), [r])[r.request_id]) for r in requests}
    crowd = [
        request_of(f"other-{n}", prompt_of(5 + 9 * n), SamplingParams(max_tokens=5 + 4 * n, seed=n))
        for n in range(8)
    ]
    together = run(core_of(model, max_num_batched_tokens=50, max_num_seqs=12), [*crowd, *requests])
    for request_id, (tokens, positions) in alone.items():
        beside, returned = output_of(together[request_id])
        assert beside == tokens
        for here, there in zip(positions, returned, strict=True):
            assert [t.token_id for t in here.top] == [t.token_id for t in there.top]
            assert [t.logprob for t in here.top] == pytest.approx([t.logprob for t in there.top], abs=1e-5)


def test_logprobs_of_named_tokens(model: Path) -> None:
    """Beside requests for the most likely tokens, or for none; a named token may be the sampled one."""
    reference = Reference(model)
    named = {"one": (5,), "more": (300, 7, 7, 0), "greedy": tuple(range(100, 228))}
    requests = [
        request_of(
            name,
            prompt_of(9 + index),
            SamplingParams(
                max_tokens=6,
                seed=index,
                ignore_eos=True,
                temperature=0.0 if name == "greedy" else 2.0,
                logit_bias={5: 3.0},
                logprobs=2,
                logprob_token_ids=token_ids,
            ),
        )
        for index, (name, token_ids) in enumerate(named.items())
    ]
    beside = [request_of("plain", prompt_of(30), SamplingParams(max_tokens=6)), asking(17)]
    deltas = run(core_of(model), [*beside, *requests])
    for request in requests:
        prompt = list(request.prompt_token_ids)
        tokens, positions = output_of(deltas[request.request_id])
        rows = reference.logits([*prompt, *tokens]).log_softmax(-1)[len(prompt) - 1 : -1]
        for position, token, row in zip(positions, tokens, rows, strict=True):
            assert position.chosen.token_id == token
            assert position.chosen.rank == 1 + int((row > row[token]).sum())
            expected = list(dict.fromkeys([token, *named[request.request_id]]))
            assert [t.token_id for t in position.top] == expected
            values = [float(row[t]) for t in expected]
            assert [t.logprob for t in position.top] == pytest.approx(values, abs=TOLERANCE)
