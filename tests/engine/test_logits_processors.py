"""Penalties, biases, allowed tokens and bad words, against the definitions written out plainly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.logits_processors import LogitsProcessors
from engine.core.types import SamplingParams
from engine.execution.sampling.logits_processing import apply_logits_processors
from engine.execution.sampling.sampler import SampledRow, Sampler

VOCAB_SIZE = 24
TOKENS = st.integers(0, VOCAB_SIZE - 1)
WORDS = st.lists(TOKENS, min_size=1, max_size=3).map(tuple)
LOGITS = st.lists(st.floats(-40, 40, width=32), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE)
GREEDY = SamplingParams(max_tokens=9, temperature=0.0)


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    maybe = st.booleans()
    return replace(
        GREEDY,
        presence_penalty=draw(st.floats(-2, 2)) if draw(maybe) else 0.0,
        frequency_penalty=draw(st.floats(-2, 2)) if draw(maybe) else 0.0,
        repetition_penalty=draw(st.floats(0.1, 3)) if draw(maybe) else 1.0,
        logit_bias=draw(st.dictionaries(TOKENS, st.floats(-100, 100), max_size=4)),
        allowed_token_ids=tuple(draw(st.lists(TOKENS, min_size=1))) if draw(maybe) else None,
        bad_words=tuple(draw(st.lists(WORDS, max_size=4))),
    )


SEQUENCES = st.tuples(
    params(), st.lists(TOKENS, min_size=1, max_size=12), st.lists(TOKENS, max_size=12), LOGITS
)


def processors_of(
    params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> LogitsProcessors | None:
    processors = LogitsProcessors.of(params, prompt)
    if processors is not None:
        for token in output:
            processors.add(token)
    return processors


def by_the_book(
    params: SamplingParams, prompt: Sequence[int], output: Sequence[int], logits: Sequence[float]
) -> list[float]:
    """One token after the other, slow and simple."""
    edited = []
    for token, logit in enumerate(logits):
        value = logit
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            value = -math.inf
        for *before, last in params.bad_words:
            if token == last and (not before or list(output[-len(before) :]) == before):
                value = -math.inf
        value += params.logit_bias.get(token, 0.0)
        if token in prompt or token in output:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value -= params.frequency_penalty * output.count(token)
        value -= params.presence_penalty * (token in output)
        edited.append(value)
    return edited


@settings(max_examples=300, deadline=None)
@given(st.lists(SEQUENCES, min_size=1, max_size=4))
def test_every_row_is_processed_as_defined(
    sequences: list[tuple[SamplingParams, list[int], list[int], list[float]]],
) -> None:
    logits = torch.tensor([sequence[3] for sequence in sequences])
    processors = {row: processors_of(*sequence[:3]) for row, sequence in enumerate(sequences)}
    apply_logits_processors(
        logits, {row: processor for row, processor in processors.items() if processor is not None}
    )
    expected = torch.tensor([by_the_book(*sequence) for sequence in sequences])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_rows_without_processors_stay_unchanged() -> None:
    assert LogitsProcessors.of(GREEDY, [1, 2]) is None
    logits = torch.arange(3 * VOCAB_SIZE, dtype=torch.float32).view(3, VOCAB_SIZE)
    asking = processors_of(replace(GREEDY, presence_penalty=1.0, logit_bias={3: 5.0}), [1], [2, 2])
    rows = [SampledRow(GREEDY, 2), SampledRow(GREEDY, 2, asking), SampledRow(GREEDY, 2)]
    before = logits.clone()
    Sampler([]).sample(logits, rows)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    changed = (logits[1] != before[1]).nonzero().flatten().tolist()
    assert changed == [2, 3]


def _forbidden(processors: LogitsProcessors) -> list[int]:
    """The tokens that would complete a bad word now."""
    return [*processors.rules.always_forbidden, *processors.completing_token_ids()]


def test_a_bad_word_is_not_completed_but_its_parts_may_occur() -> None:
    params = replace(GREEDY, bad_words=((5,), (1, 2), (1, 2, 3)))
    expected = {(): {5}, (1,): {5, 2}, (2,): {5}, (1, 2): {5, 3}, (1, 2, 1): {5, 2}, (1, 9, 2): {5}}
    for output, forbidden in expected.items():
        processors = processors_of(params, [1, 2], output)  # a word doesn't reach back into the prompt
        assert processors is not None and set(_forbidden(processors)) == forbidden


def test_a_step_looks_up_only_bad_words_that_have_begun() -> None:
    """Thousands of words cost a step no more than the one that has begun."""

    class Counted(tuple[int, ...]):
        looked_at = 0

        def __getitem__(self, index: Any) -> Any:
            Counted.looked_at += 1
            return super().__getitem__(index)

    words = tuple(Counted((number, number + 1)) for number in range(4000))
    processors = processors_of(replace(GREEDY, bad_words=words), [1], [17])
    assert processors is not None
    Counted.looked_at = 0
    assert _forbidden(processors) == [18]
    assert Counted.looked_at <= 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_of_nans_fails_alone(temperature: float, broken: float, top_p: float) -> None:
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(4)).bfloat16()
    params = replace(GREEDY, temperature=temperature, top_p=top_p, seed=3)
    rows = [SampledRow(params, position) for position in range(3)]
    whole = Sampler([]).sample(logits.clone(), rows)
    assert whole.failures == {}
    logits[1, 0 if broken > 0 or math.isnan(broken) else slice(None)] = broken
    sampled = Sampler([]).sample(logits, rows)
    assert sampled.tokens == [whole.tokens[0], None, whole.tokens[2]]
    assert list(sampled.failures) == [1]
    assert ("No token is left" in str(sampled.failures[1])) == (broken == -math.inf)


def test_parameters_that_allow_no_token_fail() -> None:
    params = replace(GREEDY, allowed_token_ids=(3, 4), bad_words=((3,), (4,)))
    sampled = Sampler([]).sample(
        torch.zeros(1, VOCAB_SIZE), [SampledRow(params, 0, processors_of(params, [1], []))]
    )
    assert sampled.tokens == [None] and "No token is left" in str(sampled.failures[0])
