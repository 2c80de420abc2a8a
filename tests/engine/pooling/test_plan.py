"""The pooling plan from files and flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import CheckpointError, ConfigError, EngineError, UnsupportedModel
from engine.models.pooling_type import PoolingType
from engine.pooling.classifier import Activation, FromTokens
from engine.pooling.plan import RunnerKind, Task, choose_runner, read_pooling_plan
from tests.engine.pooling.tiny_poolers import write_modules

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
QWEN = "Qwen3ForCausalLM"


def checkpoint(directory: Path, architecture: str, **config: Any) -> Path:
    """A config.json; None removes a key."""
    raw = {"architectures": [architecture], **SHAPE, **config}
    kept = {key: value for key, value in raw.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))
    return directory


def flags(directory: Path, **options: Any) -> EngineConfig:
    return EngineConfig(model=directory, **options)


@pytest.mark.parametrize(
    ("architecture", "options", "kind"),
    [
        ("BertModel", {}, RunnerKind.POOLING),
        ("XLMRobertaForSequenceClassification", {}, RunnerKind.POOLING),
        ("Qwen3ForSequenceClassification", {}, RunnerKind.POOLING),
        ("Qwen3Model", {}, RunnerKind.POOLING),
        (QWEN, {}, RunnerKind.GENERATE),
        (QWEN, {"convert": "none"}, RunnerKind.GENERATE),
        (QWEN, {"runner": "pooling"}, RunnerKind.POOLING),
        (QWEN, {"convert": "embed"}, RunnerKind.POOLING),
        (QWEN, {"hf_overrides": {"architectures": ["Qwen3ForSequenceClassification"]}}, RunnerKind.POOLING),
        ("MambaForCausalLM", {}, RunnerKind.GENERATE),
    ],
)
def test_the_runner_is_detected(
    architecture: str, options: dict[str, Any], kind: RunnerKind, tmp_path: Path
) -> None:
    assert choose_runner(flags(checkpoint(tmp_path, architecture), **options)) is kind


def test_sentence_transformers_files_make_an_embedding_model(tmp_path: Path) -> None:
    directory = write_modules(checkpoint(tmp_path, QWEN), "lasttoken", max_seq_length=40)
    assert choose_runner(flags(directory)) is RunnerKind.POOLING
    assert choose_runner(flags(directory, runner="generate")) is RunnerKind.GENERATE
    plan = read_pooling_plan(flags(directory))
    assert (plan.task, plan.pooling, plan.use_activation) == (Task.EMBED, PoolingType.LAST, True)
    assert plan.max_model_len == 40
    assert read_pooling_plan(flags(directory, max_model_len=64)).max_model_len == 64


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("BertModel", {"runner": "generate"}, "BertModel generates no text"),
        (QWEN, {"runner": "generate", "convert": "embed"}, "--convert embed needs --runner pooling"),
    ],
)
def test_flags_that_contradict_each_other(
    architecture: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_runner(flags(checkpoint(tmp_path, architecture), **options))


@pytest.mark.parametrize(
    ("config", "num_labels", "activation"),
    [
        ({"num_labels": 1}, 1, Activation.SIGMOID),
        ({"id2label": {"0": "LABEL_0"}}, 1, Activation.SIGMOID),
        ({}, 2, Activation.SOFTMAX),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, 3, Activation.SIGMOID),
        ({"num_labels": 1, "problem_type": "regression"}, 1, Activation.IDENTITY),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, 1, Activation.SIGMOID),
        (
            {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            1,
            Activation.IDENTITY,
        ),
        (
            {"num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
            1,
            Activation.TANH,
        ),
    ],
)
def test_labels_and_activation_come_from_the_config(
    config: dict[str, Any], num_labels: int, activation: Activation, tmp_path: Path
) -> None:
    plan = read_pooling_plan(flags(checkpoint(tmp_path, "BertForSequenceClassification", **config)))
    assert plan.task is Task.CLASSIFY
    assert plan.classifier is not None
    assert (plan.classifier.num_labels, plan.activation) == (num_labels, activation)


def test_a_reranker_by_overrides(tmp_path: Path) -> None:
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    plan = read_pooling_plan(flags(checkpoint(tmp_path, QWEN), hf_overrides=overrides))
    assert plan.classifier is not None
    assert plan.classifier.from_tokens is FromTokens.TWO_WAY_SOFTMAX
    assert (plan.classifier.num_labels, plan.classifier.tokens) == (1, ("no", "yes"))
    assert plan.classifier.joins_texts
    assert plan.pooling is PoolingType.LAST


@pytest.mark.parametrize(
    ("config", "looks_both_ways"),
    [
        ({}, False),
        ({"is_causal": True}, False),
        ({"is_causal": False}, True),
        ({"use_bidirectional_attention": True}, True),
        ({"use_bidirectional_attention": "vision"}, False),
    ],
)
def test_a_decoder_may_look_both_ways(config: dict[str, Any], looks_both_ways: bool, tmp_path: Path) -> None:
    plan = read_pooling_plan(flags(checkpoint(tmp_path, "Qwen3Model", **config)))
    assert plan.looks_both_ways is looks_both_ways


def test_roberta_keeps_positions_for_padding(tmp_path: Path) -> None:
    plan = read_pooling_plan(flags(checkpoint(tmp_path, "RobertaModel", pad_token_id=1)))
    assert plan.max_model_len == 62


def test_the_pooler_config_overrides_files(tmp_path: Path) -> None:
    directory = write_modules(checkpoint(tmp_path, "BertModel"), "max_tokens")
    with pytest.raises(UnsupportedModel, match="pooling_mode_max_tokens isn't supported"):
        read_pooling_plan(flags(directory))
    pooler = {"pooling_type": "MEAN", "use_activation": False}
    plan = read_pooling_plan(flags(directory, pooler_config=pooler))
    assert (plan.pooling, plan.use_activation) == (PoolingType.MEAN, False)


@pytest.mark.parametrize(
    ("pooler", "message"),
    [
        ({"step_tag_id": 3}, "'step_tag_id' isn't supported"),
        ({"pooling_type": "ALL"}, "'ALL' isn't one of CLS, LAST, MEAN"),
        ({"task": "classify"}, "task is 'classify', but this model's task is 'embed'"),
        ({"use_activation": 1}, "use_activation must be true or false"),
        ({"logit_sigma": 0}, "logit_sigma can't be 0"),
        ({"logit_mean": "x"}, "logit_mean can't be 'x'"),
    ],
)
def test_an_invalid_pooler_config_is_refused(pooler: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_pooling_plan(flags(checkpoint(tmp_path, "BertModel"), pooler_config=pooler))


@pytest.mark.parametrize(
    ("architecture", "config", "options", "error", "message"),
    [
        ("MambaModel", {}, {"model_impl": "native"}, ConfigError, "no class of its own for MambaModel"),
        ("LLaDAModelLM", {}, {}, UnsupportedModel, "'LLaDAModelLM'.*docs/models.md"),
        (QWEN, {}, {"convert": "none"}, ConfigError, "--convert none: Qwen3ForCausalLM pools only as"),
        ("BertForSequenceClassification", {}, {"convert": "embed"}, ConfigError, "classifies"),
        ("BertModel", {}, {"max_model_len": 65}, ConfigError, "65 exceeds the model's limit of 64 tokens"),
        ("BertModel", {"hidden_size": None}, {}, CheckpointError, "hidden_size is None"),
        ("BertForSequenceClassification", {"num_labels": 0}, {}, CheckpointError, "num_labels is 0"),
        (
            "BertForSequenceClassification",
            {"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}},
            {},
            UnsupportedModel,
            "'torch.nn.ReLU' isn't supported",
        ),
        (
            "Qwen3ForSequenceClassification",
            {"classifier_from_token": ["a"], "is_original_qwen3_reranker": True},
            {},
            CheckpointError,
            "two tokens",
        ),
        (
            "Qwen3ForSequenceClassification",
            {"classifier_from_token": ["a"]},
            {},
            UnsupportedModel,
            "method None isn't one of",
        ),
        (
            "Qwen3ForSequenceClassification",
            {"method": "no_post_processing"},
            {},
            CheckpointError,
            "classifier_from_token is None",
        ),
    ],
)
def test_unsupported_pooling_is_refused(
    architecture: str,
    config: dict[str, Any],
    options: dict[str, Any],
    error: type[EngineError],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        read_pooling_plan(flags(checkpoint(tmp_path, architecture, **config), **options))


def test_unsupported_modules_are_named(tmp_path: Path) -> None:
    directory = write_modules(checkpoint(tmp_path, "BertModel"), "mean_tokens")
    modules = json.loads((directory / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.LSTM", "path": "3_LSTM"})
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModel, match="'LSTM'"):
        read_pooling_plan(flags(directory))
    (directory / "modules.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"modules\.json can't be read"):
        read_pooling_plan(flags(directory))


def test_newer_files_name_the_mode(tmp_path: Path) -> None:
    directory = write_modules(checkpoint(tmp_path, "BertModel"), "cls_token")
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean", "include_prompt": true}')
    assert read_pooling_plan(flags(directory)).pooling is PoolingType.MEAN
