"""The text part of a checkpoint that also sees, and a text longer than the rotation was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from engine.errors import CheckpointError, UnsupportedModel
from tests.engine.families.harness import (
    TOLERANCE,
    continues_greedily,
    core_of,
    generated,
    logits_difference,
    prompt_of,
)
from tests.engine.families.recipe import configuration
from tests.engine.families.recipes import RECIPES, build, plain, randomise, save

_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"mm_tokens_per_image": 4, "image_token_index": 99}),
    "mistral3": ("mistral", {"image_token_index": 99}),
}


@pytest.mark.parametrize("model_type", _WHOLE)
def test_the_text_part_of_a_larger_model_runs(model_type: str, tmp_path: Path) -> None:
    text_type, options = _WHOLE[model_type]
    text = {"model_type": RECIPES[text_type].model_type, **configuration(RECIPES[text_type])}
    config_class: Any = CONFIG_MAPPING[model_type]
    whole_config = config_class(text_config=text, vision_config=_VISION, **options)
    model_class: Any = transformers.AutoModelForImageTextToText._model_mapping[config_class]
    torch.manual_seed(3)
    whole = model_class._from_config(whole_config, attn_implementation="eager").eval()
    randomise(whole)
    whole.save_pretrained(tmp_path)

    core = core_of(tmp_path, model_impl="transformers")
    assert logits_difference(core, whole) < TOLERANCE
    for length, tokens in generated(core).items():
        assert continues_greedily(whole, prompt_of(length), tokens)


def test_short_texts_beside_long_ones_are_rotated_alike(tmp_path: Path) -> None:
    """By the factors of the longest text that is served, which plain transformers applies to long texts."""
    directory = save(build("phi3-longrope"), tmp_path)
    raw = json.loads((directory / "config.json").read_text())
    raw["original_max_position_embeddings"] = 32  # core_of serves texts of 64 tokens
    rope = raw["rope_parameters"] | {"original_max_position_embeddings": 32}
    (directory / "config.json").write_text(json.dumps(raw | {"rope_parameters": rope}))
    core = core_of(directory, model_impl="transformers")
    rope["short_factor"] = rope["long_factor"]
    (directory / "config.json").write_text(json.dumps(raw | {"rope_parameters": rope}))
    assert logits_difference(core, plain(directory)) < TOLERANCE


def test_tensors_of_other_shapes_are_named(tmp_path: Path) -> None:
    directory = save(build("cohere2"), tmp_path)
    stored = json.loads((directory / "config.json").read_text())["intermediate_size"]
    change(directory, intermediate_size=stored + 8)
    with pytest.raises(CheckpointError, match=r"it has wrong shapes: model\.layers\.0\.mlp\.") as caught:
        core_of(directory)
    assert f", {stored}] instead of [" in str(caught.value)


def test_a_text_config_of_a_family_without_parts_is_no_crash(tmp_path: Path) -> None:
    directory = save(build("gpt2"), tmp_path)
    change(directory, text_config={"n_ctx": 64})
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel doesn't run on this engine's batches"):
        core_of(directory)


@pytest.mark.parametrize("what", ["missing", "other shape", "no scale"])
def test_experts_that_cannot_be_merged_are_named(what: str, tmp_path: Path) -> None:
    """Transformers merges an expert's stored tensors, and keeps what fails there to itself."""
    directory = save(build("mixtral"), tmp_path)
    path, name = directory / "model.safetensors", "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    tensors = load_file(path)
    if what == "missing":
        del tensors[name]
    elif what == "other shape":
        tensors[name] = tensors[name][:, 1:].contiguous()
    else:
        change(directory, quantization_config={"quant_method": "fp8"})
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, path, metadata={"format": "pt"})
    said = (
        "stores .*experts.2.w1.weight as float8"
        if what == "no scale"
        else r"0\.mlp\.experts\.gate_up_proj can't"
    )
    with pytest.raises(CheckpointError, match=said):
        core_of(directory)


def test_a_missing_key_is_told_as_such(tmp_path: Path) -> None:
    directory = save(build("cohere2"), tmp_path)
    change(directory, hidden_act="nonesuch")
    with pytest.raises(UnsupportedModel, match="KeyError: 'nonesuch'"):
        core_of(directory)


def change(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
