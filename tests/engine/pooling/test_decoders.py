"""Decoders pool by one rule: any that transformers knows, causal or looking both ways."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from engine.config import EngineConfig
from engine.errors import UnsupportedModel
from engine.pooling.plan import RunnerKind, choose_runner, read_pooling_plan
from tests.engine.pooling.test_models import INPUTS, check, core_of
from tests.engine.pooling.tiny_poolers import hidden_of, logits_of, make_pooler, write_modules


@torch.inference_mode()
def hidden_both_ways(directory: Path, inputs: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Those of a causal decoder whose mask hides nothing."""
    model: Any = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32)
    masks = [torch.zeros(1, 1, len(one), len(one)) for one in inputs]
    return [
        model(torch.tensor([one]), attention_mask=mask).last_hidden_state[0]
        for one, mask in zip(inputs, masks, strict=True)
    ]


@pytest.mark.parametrize("model_impl", ["auto", "transformers"])
@pytest.mark.parametrize("name", ["mistral-bare", "qwen2", "olmo2-bare", "qwen3-untied", "qwen3-bare"])
def test_any_decoder_embeds_by_its_last_token(name: str, model_impl: str, tmp_path: Path) -> None:
    directory = make_pooler(name, tmp_path)
    core = core_of(directory, runner="pooling", model_impl=model_impl)
    check(core, [F.normalize(hidden_of(directory, one)[-1], dim=0) for one in INPUTS])


def test_any_decoder_classifies(tmp_path: Path) -> None:
    directory = make_pooler("qwen2-cross", tmp_path)
    check(core_of(directory), [logits_of(directory, one).sigmoid() for one in INPUTS])
    directory = make_pooler("phi3-three", tmp_path)
    check(core_of(directory), [logits_of(directory, one).softmax(dim=0) for one in INPUTS])


def test_sentence_transformers_files_decide_how_any_decoder_pools(tmp_path: Path) -> None:
    directory = write_modules(make_pooler("qwen2", tmp_path), "mean_tokens")
    check(core_of(directory), [F.normalize(hidden_of(directory, one).mean(dim=0), dim=0) for one in INPUTS])


@pytest.mark.parametrize("model_impl", ["auto", "transformers"])
@pytest.mark.parametrize("mark", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_a_decoder_looks_both_ways(mark: dict[str, Any], model_impl: str, tmp_path: Path) -> None:
    causal = make_pooler("qwen3", tmp_path / "causal")
    expected = [F.normalize(hidden.mean(dim=0), dim=0) for hidden in hidden_both_ways(causal, INPUTS)]
    other = F.normalize(hidden_of(causal, INPUTS[3]).mean(dim=0), dim=0)
    assert (expected[3] - other).abs().max() > 1e-2
    directory = write_modules(make_pooler("qwen3", tmp_path, **mark), "mean_tokens")
    check(core_of(directory, model_impl=model_impl), expected)


@pytest.mark.parametrize("name", ["eurobert", "eurobert-masked"])
def test_eurobert(name: str, tmp_path: Path) -> None:
    directory = make_pooler(name, tmp_path)
    check(core_of(directory), [F.normalize(hidden_of(directory, one).mean(dim=0), dim=0) for one in INPUTS])


def test_a_llama_that_looks_both_ways(tmp_path: Path) -> None:
    causal = make_pooler("llama-bare", tmp_path / "causal")
    expected = [F.normalize(hidden.mean(dim=0), dim=0) for hidden in hidden_both_ways(causal, INPUTS)]
    kind = {"architectures": ["LlamaBidirectionalModel"], "model_type": "llama_bidirec", "pooling": "avg"}
    check(core_of(make_pooler("llama-bare", tmp_path, **kind)), expected)


def test_a_reranker_that_looks_both_ways(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    causal = make_pooler("llama-cross", tmp_path / "causal")
    score = load_file(causal / "model.safetensors")["score.weight"]
    expected = [F.linear(hidden.mean(dim=0), score).sigmoid() for hidden in hidden_both_ways(causal, INPUTS)]
    kind = {"architectures": ["LlamaBidirectionalForSequenceClassification"], "model_type": "llama_bidirec"}
    check(core_of(make_pooler("llama-cross", tmp_path, **kind)), expected)


def test_embeddinggemma_looks_both_ways_within_its_windows(tmp_path: Path) -> None:
    directory = write_modules(make_pooler("gemma3", tmp_path), "mean_tokens")
    check(core_of(directory), [F.normalize(hidden_of(directory, one).mean(dim=0), dim=0) for one in INPUTS])


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("MistralModel", RunnerKind.POOLING),
        ("Gemma2ForSequenceClassification", RunnerKind.POOLING),
        ("MistralForCausalLM", RunnerKind.GENERATE),
        ("GPT2LMHeadModel", RunnerKind.GENERATE),
    ],
)
def test_the_runner_of_an_architecture_without_a_class_of_ours(
    architecture: str, kind: RunnerKind, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert choose_runner(EngineConfig(model=tmp_path)) is kind


def test_softcaps_both_ways_are_refused(tmp_path: Path) -> None:
    directory = make_pooler("gemma2-bare", tmp_path, is_causal=False)
    with pytest.raises(UnsupportedModel, match="softcaps"):
        core_of(directory)


def test_a_model_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["FooModel"], "model_type": "foo"}))
    with pytest.raises(UnsupportedModel, match=r"'FooModel'.*isn't known to transformers"):
        read_pooling_plan(EngineConfig(model=tmp_path))


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("DebertaV2Model", "deberta-v2"),
        ("DebertaV2ForSequenceClassification", "deberta-v2"),
        ("T5EncoderModel", "t5"),
        ("ViTModel", "vit"),
    ],
)
def test_what_neither_the_engine_nor_transformers_has_for_embeddings_is_refused_as_such(
    architecture: str, model_type: str, tmp_path: Path
) -> None:
    config = {"architectures": [architecture], "model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel) as refusal:
        read_pooling_plan(EngineConfig(model=tmp_path))
    says = f"Architecture '{architecture}' is neither one of the encoders that docs/models.md lists nor, in"
    assert refusal.value.message.startswith(says)
    assert "generates text" not in refusal.value.message
