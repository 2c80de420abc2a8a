"""Each family runs by transformers' code on the engine's cache as it does in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UnsupportedModel
from tests.engine.families.harness import (
    TOLERANCE,
    continues_greedily,
    core_of,
    generated,
    logits_difference,
    prompt_of,
)
from tests.engine.families.recipes import RECIPES, REFUSED, build, plain, save

# One of each kind: windows, softcaps, sinks, experts, two sizes of heads, biases, scaled logits, a text part,
# states.
_TYPICAL = (
    *("cohere2", "deepseek_v3", "gemma2", "gemma3n_text", "glm4", "gpt2", "gpt_oss", "granitemoe"),
    *("falcon_h1", "jamba", "lfm2", "mixtral", "phi", "qwen2_moe", "qwen3_next", "youtu"),
)


@pytest.mark.parametrize(
    "name",
    [name if name in _TYPICAL else pytest.param(name, marks=pytest.mark.exhaustive) for name in RECIPES],
)
def test_a_family_computes_what_plain_transformers_does(name: str, tmp_path: Path) -> None:
    directory = save(build(name), tmp_path)
    core, model = core_of(directory, model_impl="transformers"), plain(directory)

    assert logits_difference(core, model) < TOLERANCE
    tokens = generated(core)
    for length, continuation in tokens.items():
        assert continues_greedily(model, prompt_of(length), continuation)
    assert core.stats().num_preemptions > 0


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_run_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    directory = save(build(name), tmp_path)
    with pytest.raises(UnsupportedModel) as caught:
        core_of(directory)
    assert REFUSED[name] in str(caught.value)
