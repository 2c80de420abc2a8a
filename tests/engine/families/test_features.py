"""What the engine does with its own classes it does with transformers' as well."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.core.engine_core import EngineCore
from engine.core.sleep import Part
from engine.core.types import SamplingParams
from tests.engine.families.harness import (
    TOLERANCE,
    core_of,
    logits_difference,
    prompt_of,
    reference_logits,
)
from tests.engine.families.recipes import build, made, plain, recipe_of, save
from tests.engine.test_generation import greedy, request_of, run


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("qwen3_moe"), tmp_path_factory.mktemp("features"))


def started(directory: Path, **options: Any) -> EngineCore:
    return core_of(directory, model_impl="transformers", **options)


@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_and_wakes(directory: Path, level: int) -> None:
    core = started(directory)
    before = run(core, [greedy("a", prompt_of(20))])
    weights = core.memory.weights
    assert weights > 0
    core.sleep(level)
    assert core.memory.kv_cache == 0
    assert core.memory.weights == (0 if level == 2 else weights)
    core.wake_up({Part.WEIGHTS, Part.KV_CACHE})
    assert core.memory.weights == weights
    assert run(core, [greedy("a", prompt_of(20))]) == before


def test_a_cached_prefix_changes_nothing(directory: Path) -> None:
    core = started(directory)
    first = run(core, [greedy("a", prompt_of(40))])["a"]
    assert run(core, [greedy("b", prompt_of(40))])["b"] == first
    assert core.stats().prefix_cache_hits > 0


def test_logprobs_of_the_prompt_are_those_of_plain_transformers(directory: Path) -> None:
    core, prompt = started(directory), prompt_of(30)
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    core.add(request_of("a", prompt, params))
    found: list[float] = []
    while core.has_work:
        for delta in core.step():
            found += [one.chosen.logprob for one in delta.prompt_logprobs or () if one is not None]
    expected = reference_logits(plain(directory), prompt).log_softmax(dim=-1)
    wanted = [float(expected[row, token]) for row, token in enumerate(prompt[1:])]
    assert torch.allclose(torch.tensor(found), torch.tensor(wanted), atol=1e-4)


def test_a_request_that_is_aborted_leaves_the_others_as_they_are(directory: Path) -> None:
    core = started(directory, num_gpu_blocks_override=24)
    alone = run(core, [greedy("a", prompt_of(20))])["a"]
    core.add(replace(greedy("a", prompt_of(20)), request_id="kept"))
    core.add(greedy("gone", prompt_of(9)))
    core.step()
    core.abort("gone")
    tokens: list[int] = []
    while core.has_work:
        tokens += [token for delta in core.step() if delta.request_id == "kept" for token in delta.token_ids]
    assert tokens[-5:] == alone[-5:]


def test_a_model_that_our_layers_do_not_fit_runs_with_its_own(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(started(directory), [greedy("a", prompt_of(20))])

    def failing(*args: Any, **options: Any) -> None:
        raise RuntimeError("view size is not compatible")

    monkeypatch.setattr("engine.models.transformers_backend.model.swap", failing)
    assert run(started(directory), [greedy("a", prompt_of(20))]) == expected
    assert "it runs more slowly" in caplog.text


def test_a_layer_that_computes_something_else_is_not_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(started(directory), [greedy("a", prompt_of(20))])
    monkeypatch.setattr("engine.models.layers.norm.RMSNorm.forward", lambda self, x: x)
    assert run(started(directory), [greedy("a", prompt_of(20))]) == expected


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_the_row_of_the_padding_is_as_it_was_saved(stored: torch.dtype, tmp_path: Path) -> None:
    """Some of transformers' classes set it to 0 after it is loaded, which mapped tensors lose again."""
    recipe = recipe_of("youtu")
    model: Any = made("youtu", replace(recipe, options={**recipe.options, "pad_token_id": 0}))
    core = started(save(deepcopy(model).to(stored), tmp_path))
    assert logits_difference(core, model) < TOLERANCE


def test_a_name_that_nobody_knows_beside_a_known_family_is_computed_as_that_family(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers does; the log says so."""
    renamed = Path(shutil.copytree(directory, tmp_path / "renamed"))
    config = json.loads((renamed / "config.json").read_text())
    (known,) = config["architectures"]
    (renamed / "config.json").write_text(json.dumps({**config, "architectures": ["ZorgForCausalLM"]}))
    caplog.set_level("INFO")
    prompt = [greedy("a", prompt_of(20))]
    assert run(started(renamed), prompt) == run(started(directory), prompt)
    assert f"Transformers' own code computes ZorgForCausalLM as {known} in float32" in caplog.text
    assert f"Transformers' own code computes {known} in float32" in caplog.text
