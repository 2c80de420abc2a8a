"""Models that transformers' own code runs, divided by its plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core.sleep import ALL_PARTS
from engine.errors import ConfigError, UnsupportedModel
from engine.launch.preflight import check_config
from engine.models.quantised.checkpoint import open_checkpoint
from engine.models.transformers_backend.division import ModelDivision
from engine.models.transformers_backend.family import read_transformers_config
from engine.models.transformers_backend.loading import build_empty
from engine.models.transformers_backend.probe import NAME as PROBE
from engine.models.transformers_backend.stored_parts import stored_parts
from tests.engine.families.harness import (
    TOLERANCE,
    continues_greedily,
    core_of,
    generated,
    logits_difference,
    prompt_of,
)
from tests.engine.families.recipes import build, plain, save
from tests.engine.parallel.thread_group import ThreadGroup, on_ranks
from tests.engine.parallel.thread_ranks import ranks_in_threads

# Softcaps and windows; experts and norms over all heads; a plan of our own, with sinks and biases.
TYPICAL = ("gemma2", "olmoe", "gpt_oss")


@pytest.mark.parametrize("name", TYPICAL)
def test_two_ranks_compute_what_plain_transformers_does(name: str, tmp_path: Path) -> None:
    directory = save(build(name), tmp_path)
    with ranks_in_threads():
        core, model = core_of(directory, tensor_parallel_size=2), plain(directory)
    assert logits_difference(core, model) < TOLERANCE
    tokens = generated(core)
    for length, continuation in tokens.items():
        assert continues_greedily(model, prompt_of(length), continuation)
    assert core.stats().num_preemptions > 0
    share: Any = core._runner
    assert {spec.num_kv_heads for spec in share._residency.model.attention_specs} == {share_of_heads(model)}
    core.sleep(2)
    core.wake_up(ALL_PARTS)
    assert logits_difference(core, model) < TOLERANCE


def share_of_heads(model: Any) -> int:
    return int(model.config.num_key_value_heads) // 2


def test_key_value_heads_are_repeated_where_there_are_fewer_than_devices(tmp_path: Path) -> None:
    """Two heads for four ranks; transformers' plan alone would cut them in halves."""
    directory = save(build("olmoe"), tmp_path)
    with ranks_in_threads():
        core = core_of(directory, tensor_parallel_size=4)
    assert logits_difference(core, plain(directory)) < TOLERANCE


def test_a_rank_reads_its_share_of_experts_that_are_stored_one_by_one(tmp_path: Path) -> None:
    directory = save(build("mixtral"), tmp_path)
    config = read_transformers_config(directory)

    def read(group: ThreadGroup) -> tuple[int, int]:
        division = ModelDivision(config, group)
        with open_checkpoint(directory) as source:
            parts = stored_parts(build_empty(config, PROBE), source.names, division.part_of)
            experts = [name for name in source.names if ".experts." in name]
            assert parts.keys() >= set(experts)
            own = sum(parts[name].read(source, name).numel() for name in experts)
            return own, sum(source.tensor(name).numel() for name in experts)

    for own, whole in [read(group) for group in on_ranks(2, lambda group: group)]:
        assert own * 2 == whole


def test_ranks_hold_hardly_more_than_one_device_would(tmp_path: Path) -> None:
    directory = save(build("hunyuan_v1_dense"), tmp_path)
    with ranks_in_threads():
        divided = core_of(directory, tensor_parallel_size=2)
    whole = core_of(directory)
    assert whole.memory.weights <= divided.memory.weights < whole.memory.weights * 1.05
    assert divided.memory.kv_cache == whole.memory.kv_cache


def settings(directory: Path, size: int) -> EngineConfig:
    return EngineConfig(model=directory, device="cpu", num_threads=1, tensor_parallel_size=size)


def test_a_family_without_a_plan_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"^GPT2LMHeadModel can't be divided among devices: transformers has no plan"
    ):
        check_config(settings(save(build("gpt2"), tmp_path), 2))


def test_a_size_that_does_not_divide_the_model_is_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"size 3 doesn't divide Gemma2ForCausalLM: .* Possible: 1, 2, 4\."):
        check_config(settings(save(build("gemma2"), tmp_path), 3))


def test_a_style_that_nobody_knows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {"layers.*.mlp.down_proj": "by_the_moon"}
    directory = save(build("llama"), tmp_path)
    config = read_transformers_config(directory)
    monkeypatch.setattr(type(config.settings), "base_model_tp_plan", plan)
    with pytest.raises(UnsupportedModel, match="a style that the engine doesn't know, 'by_the_moon'"):
        ModelDivision(config, on_ranks(2, lambda group: group)[0])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"layers.*.self_attn.q_proj": "colwise"}, "its code fails with a share|then has other heads"),
        ({"layers.*.mlp.down_proj": "rowwise"}, "its code fails with a share"),
    ],
)
def test_a_plan_that_does_not_fit_its_code_is_refused(
    plan: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_transformers_config(save(build("llama"), tmp_path))
    monkeypatch.setattr(type(config.settings), "base_model_tp_plan", plan)
    with pytest.raises(UnsupportedModel, match=words):
        ModelDivision(config, on_ranks(2, lambda group: group)[1])
