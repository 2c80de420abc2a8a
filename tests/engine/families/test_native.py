"""Each family that the engine has a class for computes what plain transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from docs.families_table import YES
from engine.models.registry import ARCHITECTURES
from tests.engine.families.documented import row_of
from tests.engine.families.harness import (
    check_text,
    core_of,
    logits_difference,
    prompt_of,
    reference_logits,
)
from tests.engine.families.native_recipes import NATIVE
from tests.engine.families.recipes import made, plain, save


@pytest.mark.parametrize("name", NATIVE)
def test_a_family_computes_what_plain_transformers_does(name: str, tmp_path: Path) -> None:
    directory = save(made(name, NATIVE[name]), tmp_path)
    core, model = core_of(directory, model_impl="native"), plain(directory)

    check_text(core, model)
    assert row_of(NATIVE[name]).text == YES


@pytest.mark.parametrize("name", NATIVE)
def test_a_family_computes_nearly_the_same_in_bfloat16(name: str, tmp_path: Path) -> None:
    """With the kernels of this CPU, if it has them."""
    directory = save(made(name, NATIVE[name]), tmp_path)
    core, model = core_of(directory, model_impl="native", dtype="bfloat16"), plain(directory)
    largest = float(reference_logits(model, prompt_of(39)).abs().max())
    assert logits_difference(core, model) < 0.08 * largest


def test_every_family_is_tried() -> None:
    tried = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[recipe.model_type] for recipe in NATIVE.values()}
    assert tried == {name for name, architecture in ARCHITECTURES.items() if architecture.generates}
