"""Each family runs by transformers' code on the engine's cache as it does in plain transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
)

from docs.families_table import PAGE, YES, documented_refusal
from engine.errors import UnsupportedModel
from tests.engine.families.documented import architecture_of, documented_refusals, row_of
from tests.engine.families.harness import check_text, core_of
from tests.engine.families.native_recipes import NATIVE
from tests.engine.families.recipe import HEADS, Recipe, family
from tests.engine.families.recipes import RECIPES, REFUSED, build, made, plain, recipe_of, save

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

    check_text(core, model)
    assert row_of(RECIPES[name]).text == YES


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_run_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    directory = save(build(name), tmp_path)
    with pytest.raises(UnsupportedModel) as caught:
        core_of(directory)
    assert REFUSED[name] in caught.value.message
    documented = documented_refusals(PAGE.read_text(encoding="utf-8"))
    assert (architecture_of(recipe_of(name)), documented_refusal(caught.value.message)) in documented


def test_every_decoder_of_transformers_is_tried_or_left_out_by_rule() -> None:
    """Left out are heads of encoders, halves of encoder-decoders, and what docs/models.md says of images."""
    tried = {recipe.model_type for recipe in (*RECIPES.values(), *NATIVE.values())}
    tried |= {recipe_of(name).model_type for name in REFUSED}
    left_out = {
        *MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,  # the text part has a name of its own
        *MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
        *(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name.endswith("_assistant")),  # drafts only
    }
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - left_out == tried


_ENCODERS: Mapping[str, Any] = {"omits": HEADS, "is_decoder": True}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (family("roberta", **_ENCODERS), "counts positions in a way of its own"),
        (family("xlm-roberta-xl", **_ENCODERS), "counts positions in a way of its own"),
        (family("bert", omits=HEADS), "attends to later positions, too"),
    ],
)
def test_the_head_of_an_encoder_runs_only_if_it_is_a_decoder_in_all(
    recipe: Recipe, words: str, tmp_path: Path
) -> None:
    directory = save(made(recipe.model_type, recipe), tmp_path)
    with pytest.raises(UnsupportedModel, match=words):
        core_of(directory)
