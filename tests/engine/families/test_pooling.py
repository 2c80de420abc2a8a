"""Any decoder that transformers runs can embed and classify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

from engine.config import EngineConfig
from engine.pooling.plan import Task, read_pooling_plan
from tests.engine.families.harness import pooled, prompt_of
from tests.engine.families.recipe import configuration
from tests.engine.families.recipes import RECIPES, randomise

CASES = [
    ("Qwen2Model", "qwen2", {}),
    ("Gemma3TextModel", "gemma3_text", {}),
    ("MistralForCausalLM", "mistral", {"runner": "pooling"}),
    ("Qwen3Model", "qwen3", {"model_impl": "transformers"}),
    ("Lfm2Model", "lfm2", {}),  # carries a state
]


def saved(class_name: str, recipe: str, directory: Path, **changes: Any) -> Path:
    config = CONFIG_MAPPING[RECIPES[recipe].model_type](**configuration(RECIPES[recipe]), **changes)
    torch.manual_seed(1)
    model = getattr(transformers, class_name)._from_config(config, attn_implementation="eager")
    randomise(model)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("class_name", "recipe", "options"), CASES)
def test_a_decoder_embeds_as_plain_transformers_does(
    class_name: str, recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    directory = saved(class_name, recipe, tmp_path)
    prompts = [prompt_of(length) for length in (5, 20, 33)]
    plain = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32)

    for prompt, vector in zip(prompts, pooled(directory, prompts, **options), strict=True):
        with torch.inference_mode():
            last = plain(torch.tensor([prompt])).last_hidden_state[0, -1]
        assert (vector - last / last.norm()).abs().max() < 1e-4


def test_a_decoder_classifies_as_plain_transformers_does(tmp_path: Path) -> None:
    directory = saved("Qwen2ForSequenceClassification", "qwen2", tmp_path, num_labels=3)
    prompts = [prompt_of(length) for length in (5, 20)]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    config = EngineConfig(model=directory)
    assert read_pooling_plan(config).task is Task.CLASSIFY

    for prompt, scores in zip(prompts, pooled(directory, prompts), strict=True):
        with torch.inference_mode():
            expected = plain(torch.tensor([prompt])).logits[0].softmax(dim=-1)
        assert (scores - expected).abs().max() < 1e-4
