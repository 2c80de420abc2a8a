"""Each family runs on two devices as docs/models.md says: equal to plain transformers, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.families.documented import check_documented, row_of
from tests.engine.families.harness import check_text, core_of
from tests.engine.families.native_recipes import NATIVE
from tests.engine.families.recipe import Recipe
from tests.engine.families.recipes import RECIPES, made, plain, save
from tests.engine.parallel.thread_ranks import ranks_in_threads

_TYPICAL = ("gemma2", "gpt2", "gpt_oss")
_CASES = [
    *((name, "transformers") for name in RECIPES),
    *((name, "native") for name in NATIVE),
]


@pytest.mark.parametrize(
    ("name", "model_impl"),
    [one if one[0] in _TYPICAL else pytest.param(*one, marks=pytest.mark.exhaustive) for one in _CASES],
)
def test_a_family_is_divided_as_documented(name: str, model_impl: str, tmp_path: Path) -> None:
    recipe: Recipe = {"transformers": RECIPES, "native": NATIVE}[model_impl][name]
    directory = save(made(name, recipe), tmp_path)

    def check() -> None:
        with ranks_in_threads():
            core = core_of(directory, model_impl=model_impl, tensor_parallel_size=2)
        check_text(core, plain(directory))

    check_documented(row_of(recipe).divided, check)
