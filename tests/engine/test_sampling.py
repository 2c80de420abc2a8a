"""The sampler by itself: filters, distribution, and independence of the rows."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from engine.core.types import SamplingParams
from engine.execution.sampling.sampler import SampledRow, Sampler
from engine.execution.sampling.uniform import uniform

VOCAB_SIZE = 3000  # more than are ranked at first
PLAIN = SamplingParams(max_tokens=1, temperature=1.0)
EOS = 7


def logits_of(seed: int, *, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def allowed_tokens(logits: torch.Tensor, params: SamplingParams) -> dict[int, float]:
    """The distribution by definition, in float64 and with full sorts: token → probability."""
    probabilities = torch.softmax(logits.double() / params.temperature, dim=-1)
    probabilities[probabilities < params.min_p * probabilities.max()] = 0
    ranked, tokens = probabilities.sort(descending=True, stable=True)
    if params.top_k:
        ranked[params.top_k :] = 0
    ranked /= ranked.sum()
    before = ranked.cumsum(0) - ranked
    ranked[before >= params.top_p] = 0
    ranked /= ranked.sum()
    return {int(t): float(p) for t, p in zip(tokens, ranked, strict=True) if p > 0}


def draw(logits: torch.Tensor, params: SamplingParams, count: int) -> Counter[int | None]:
    """`count` tokens: one position after the other of one request, many at a time."""
    rows = [SampledRow(params, position) for position in range(count)]
    sampler = Sampler([EOS])
    tokens: list[int | None] = []
    for start in range(0, count, 500):
        part = rows[start : start + 500]
        tokens += sampler.sample(logits.expand(len(part), -1).clone(), part).tokens
    return Counter(tokens)


PARAMS = {
    "plain": PLAIN,
    "hot": replace(PLAIN, temperature=1.7),
    "cold": replace(PLAIN, temperature=0.4),
    "top_k": replace(PLAIN, top_k=20),
    "top_k of one": replace(PLAIN, top_k=1),
    "top_k beyond the candidates": replace(PLAIN, top_k=2000, top_p=0.999, temperature=3.0),
    "top_k of all": replace(PLAIN, top_k=VOCAB_SIZE),
    "top_p": replace(PLAIN, top_p=0.8),
    "top_p next to nothing": replace(PLAIN, top_p=1e-6),
    "top_p beyond the candidates": replace(PLAIN, top_p=0.97, temperature=30.0),
    "min_p": replace(PLAIN, min_p=0.1),
    "min_p of 1": replace(PLAIN, min_p=1.0),
    "all": replace(PLAIN, temperature=1.3, top_k=100, top_p=0.9, min_p=0.01),
}


@pytest.mark.parametrize("name", PARAMS)
def test_tokens_follow_the_filtered_distribution(name: str) -> None:
    """Chi-square over some 30 classes of tokens; the limit is exceeded by chance once in 10^5."""
    params, logits, count = PARAMS[name], logits_of(1), 4000
    expected = allowed_tokens(logits, params)
    drawn = draw(logits, params, count)
    assert drawn.keys() <= expected.keys()
    classes: list[tuple[float, int]] = []  # (expected count, drawn count), each of at least 100 expected
    share, seen = 0.0, 0
    for token, probability in expected.items():
        share, seen = share + probability * count, seen + drawn[token]
        if share >= 100:
            classes.append((share, seen))
            share, seen = 0.0, 0
    statistic = sum((seen - share) ** 2 / share for share, seen in classes)
    freedom = max(len(classes) - 1, 1)
    assert statistic < freedom + 4.3 * math.sqrt(2 * freedom) + 10


def test_every_row_is_sampled_as_if_alone() -> None:
    rows = [
        SampledRow(replace(params, seed=seed, temperature=temperature), position)
        for seed, params in enumerate(PARAMS.values())
        for temperature in (0.0, params.temperature)
        for position in (0, 5)
    ]
    logits = torch.stack([logits_of(index) for index in range(len(rows))])
    sampler = Sampler([EOS])
    together = sampler.sample(logits.clone(), rows).tokens
    alone = [sampler.sample(logits[i : i + 1].clone(), [row]).tokens[0] for i, row in enumerate(rows)]
    reversed_rows = sampler.sample(logits.flip(0).clone(), rows[::-1]).tokens
    assert together == alone == reversed_rows[::-1]


def test_greedy_takes_the_first_of_equals() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.zeros(3, VOCAB_SIZE, dtype=dtype)
        logits[0, [2500, 40, 900]] = 3.0
        logits[1, VOCAB_SIZE - 1] = 0.5
        logits[2] = -math.inf
        logits[2, 17] = -1e30
        rows = [SampledRow(replace(PLAIN, temperature=0.0), 0)] * 3
        assert Sampler([]).sample(logits, rows).tokens == [40, VOCAB_SIZE - 1, 17]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_greedy_is_the_argmax(count: int) -> None:
    logits = torch.randn(count, VOCAB_SIZE, generator=torch.Generator().manual_seed(count)).bfloat16()
    rows = [SampledRow(replace(PLAIN, temperature=0.0), 0)] * count
    assert Sampler([]).sample(logits.clone(), rows).tokens == logits.float().argmax(-1).tolist()


def test_seed_and_position_each_change_the_token() -> None:
    logits = logits_of(3, spread=0.1)
    by_position = draw(logits, PLAIN, 50)
    by_seed = Counter(
        Sampler([]).sample(logits[None].clone(), [SampledRow(replace(PLAIN, seed=seed), 0)]).tokens[0]
        for seed in range(50)
    )
    assert len(by_position) > 40
    assert len(by_seed) > 40
    assert by_position != by_seed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_forbids_stops_until_then(temperature: float) -> None:
    logits = torch.zeros(4, VOCAB_SIZE)
    logits[:, EOS] = 100.0
    logits[:, 9] = 90.0
    logits[:, 11] = 80.0
    params = replace(
        PLAIN, temperature=temperature, min_tokens=3, stop_token_ids=frozenset({9, VOCAB_SIZE + 5})
    )
    rows = [
        SampledRow(params, 2),  # too early for either
        SampledRow(params, 3),  # late enough
        SampledRow(replace(params, ignore_eos=True), 2),  # the end of sequence doesn't stop it: it may come
        SampledRow(replace(params, stop_token_ids=frozenset()), 0),
    ]
    assert Sampler([EOS]).sample(logits, rows).tokens == [11, EOS, EOS, 9]


def test_uniform_is_uniform_and_fixed() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    buckets = Counter(int(number * 20) for number in numbers)
    assert sum((buckets[b] - 500) ** 2 / 500 for b in range(20)) < 60
    lagged = pairwise(numbers)
    assert abs(sum((a - 0.5) * (b - 0.5) for a, b in lagged)) / len(numbers) < 0.005
    # Fixed: a change would change the outputs of clients with a seed.
    assert (uniform(0, 0), uniform(2**64 - 1, 10**6)) == (0.6524484863740322, 0.4611314684076886)


def test_a_rounding_that_swaps_two_ranks_does_not_change_the_draw() -> None:
    """Tokens 1 and 2 differ only in the last bit, which depends on the rest of the batch."""
    first = torch.tensor([[0.0, 1.0, 1.0 + 1e-6, 0.5]])
    second = torch.tensor([[0.0, 1.0 + 1e-6, 1.0, 0.5]])
    for seed in range(200):
        params = SamplingParams(max_tokens=1, top_p=0.95, top_k=3, seed=seed)
        drawn = [Sampler(()).sample(logits.clone(), [SampledRow(params, 0)]) for logits in (first, second)]
        assert drawn[0] == drawn[1]
