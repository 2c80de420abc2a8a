"""Embedding models and classifiers with quantised weights, against transformers with what became of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from tests.engine.pooling.jina_bert import JinaBertReference, make_jina_bert
from tests.engine.pooling.test_models import INPUTS, check, core_of
from tests.engine.pooling.tiny_poolers import RECIPES, hidden_of, logits_of, make_sized_pooler
from tests.engine.quantised.quantisers import QUANTISERS, Quantiser

FAMILIES = ("xlm-roberta", "modernbert-biased", "nomic", "gte", "jina-v3", "distilbert")
SIZES = {"intermediate_size": 64, "hidden_dim": 64}  # of whole groups


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        if not hasattr(transformers, RECIPES[name][0]):
            pytest.skip(f"this version of transformers has no {RECIPES[name][0]}")
        known = {key: size for key, size in SIZES.items() if key in RECIPES[name][1]}
        return make_sized_pooler(name, tmp_path_factory.mktemp("poolers"), known)

    return make


def some(names: Iterable[str], *typical: str) -> list[Any]:
    """The others belong to the long tables."""
    return [name if name in typical else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


def quantise(directory: Path, target: Path, quantiser: Quantiser, *, group: int = 32) -> int:
    """Write `directory` quantised to `target`, and dequantised where it is. The number of quantised tensors.

    Those that have no whole groups stay as they are.
    """
    shutil.copytree(directory, target)
    stored: dict[str, torch.Tensor] = {}
    plain = load_file(directory / "model.safetensors")
    num_quantised = 0
    for name, tensor in list(plain.items()):
        is_linear = tensor.dim() == 2 and "embed" not in name and "bias" not in name
        if name.endswith(".weight") and is_linear and not any(size % group for size in tensor.shape):
            parts, dequantised = quantiser.quantise(tensor)
            plain[name] = dequantised.contiguous()
            stem = name.removesuffix("weight")
            stored |= {f"{stem}{part}": value for part, value in parts.items()}
            num_quantised += 1
        else:
            stored[name] = tensor
    save_file(plain, directory / "model.safetensors", {"format": "pt"})
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": quantiser.settings}))
    return num_quantised


def check_embeddings(directory: Path, quantiser: Quantiser, target: Path) -> None:
    assert quantise(directory, target, quantiser)
    check(core_of(target), [F.normalize(hidden_of(directory, one)[0], dim=0) for one in INPUTS])


@pytest.mark.parametrize("method", some(QUANTISERS, "gptq", "fp8", "bitsandbytes"))
def test_an_encoder_in_each_form(method: str, plain: Callable[[str], Path], tmp_path: Path) -> None:
    check_embeddings(plain("bert"), QUANTISERS[method], tmp_path / "quantised")


@pytest.mark.parametrize("name", some(FAMILIES, "modernbert-biased", "distilbert"))
def test_encoders_of_each_family(name: str, plain: Callable[[str], Path], tmp_path: Path) -> None:
    check_embeddings(plain(name), QUANTISERS["gptq"], tmp_path / "quantised")


def test_jinas_own_code(tmp_path: Path) -> None:
    """Its projections are stored in one tensor, whose rows are divided."""
    directory = make_jina_bert(tmp_path / "plain")
    assert quantise(directory, tmp_path / "quantised", QUANTISERS["fbgemm_fp8"], group=1)
    reference = JinaBertReference(directory)
    check(
        core_of(tmp_path / "quantised"), [F.normalize(reference.hidden(one).mean(0), dim=0) for one in INPUTS]
    )


@pytest.mark.parametrize("name", some(("bert-cross", "modernbert-cross", "xlm-cross"), "bert-cross"))
def test_a_classifier_with_a_quantised_layer_of_its_own(
    name: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = plain(name)
    assert quantise(directory, tmp_path / "quantised", QUANTISERS["fbgemm_fp8"], group=1)
    check(core_of(tmp_path / "quantised"), [logits_of(directory, one).sigmoid() for one in INPUTS])


@pytest.mark.parametrize(
    "name", some(("qwen3-bare", "llama-bare", "gemma2-bare", "mistral-bare"), "qwen3-bare", "gemma2-bare")
)
def test_decoders_that_pool(name: str, plain: Callable[[str], Path], tmp_path: Path) -> None:
    """Saved without the prefix of their names, and one that transformers' own code computes."""
    directory = plain(name)
    assert quantise(directory, tmp_path / "quantised", QUANTISERS["compressed-tensors"])
    check(
        core_of(tmp_path / "quantised"), [F.normalize(hidden_of(directory, one)[-1], dim=0) for one in INPUTS]
    )


def test_settings_name_layers_as_they_are_stored(plain: Callable[[str], Path], tmp_path: Path) -> None:
    """MPNet's `encoder.layer.0.attention.attn.q` is `attention.self.query` in the model."""
    weights = {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": False, "type": "int"}
    targets = [r"re:.*attention\.attn\.\w$", r"re:.*(output|intermediate|pooler)\.dense$"]
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": targets, "weights": weights}},
    }
    quantiser = Quantiser(settings, QUANTISERS["compressed-tensors"].quantise)
    check_embeddings(plain("mpnet"), quantiser, tmp_path / "quantised")
