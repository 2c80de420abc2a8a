"""A whole model in each form: it generates what it does with its dequantised weights saved plainly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint.quantisation import METHODS
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.launch.preflight import check_config
from engine.models.quantised.checkpoint import open_checkpoint
from tests.engine.quantised.quantisers import QUANTISERS, Quantiser
from tests.engine.test_generation import core_of, greedy, run
from tests.engine.tiny_models import prompt_of

PROMPT = prompt_of(20)


def is_quantised(name: str) -> bool:
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def saved(source: Path, directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    values = (
        json.loads((source / "config.json").read_text())
        | {"num_hidden_layers": 1, "layer_types": None}
        | config
    )
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def both(source: Path, tmp_path: Path, name: str) -> tuple[Path, Path]:
    return both_of(source, tmp_path, QUANTISERS[name])


def both_of(source: Path, tmp_path: Path, quantiser: Quantiser) -> tuple[Path, Path]:
    """The checkpoint quantised, and with what became of its weights."""
    stored: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for tensor_name, tensor in load_file(source / "model.safetensors").items():
        if tensor_name.startswith(("model.layers.1.", "model.layers.2.")):
            continue  # one layer is enough, and quantised sooner
        if is_quantised(tensor_name):
            stem = tensor_name.removesuffix("weight")
            parts, plain[tensor_name] = quantiser.quantise(tensor)
            stored |= {f"{stem}{part}": value for part, value in parts.items()}
        else:
            stored[tensor_name] = plain[tensor_name] = tensor
    quantised = saved(source, tmp_path / "quantised", stored, quantization_config=quantiser.settings)
    return quantised, saved(source, tmp_path / "plain", plain)


def generated(directory: Path, **options: Any) -> list[int]:
    return run(core_of(directory, max_model_len=64, **options), [greedy("r", PROMPT)])["r"]


def test_every_method_is_tried() -> None:
    methods = {str(one.settings["quant_method"]) for one in QUANTISERS.values()}
    assert methods | {"mxfp4"} == METHODS  # which only experts have


@pytest.mark.parametrize("name", QUANTISERS)
def test_greedy_tokens_are_those_of_the_dequantised_weights(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    quantised, plain = both(checkpoint("qwen3-tied"), tmp_path, name)
    method = QUANTISERS[name].settings["quant_method"]
    expected = generated(plain)
    assert generated(quantised) == expected
    assert f"Quantised weights ({method}): 7 tensors are dequantised as they are loaded." in caplog.messages
    with open_checkpoint(plain) as one, open_checkpoint(quantised) as other:
        assert one.names == other.names
        for tensor in one.names:
            assert torch.allclose(one.tensor(tensor), other.tensor(tensor), rtol=1e-3, atol=1e-6), tensor


def test_the_methods_flag_may_name_only_the_checkpoints_own(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    quantised, plain = both(checkpoint("qwen3-tied"), tmp_path, "gptq")
    for name in (None, "gptq", "gptq_marlin"):
        check_config(EngineConfig(model=quantised, quantization=name))
    with pytest.raises(ConfigError, match=r"--quantization awq can't be honoured.*are quantised as 'gptq'"):
        check_config(EngineConfig(model=quantised, quantization="awq"))
    with pytest.raises(ConfigError, match=r"--quantization fp8 can't be honoured.*aren't quantised"):
        check_config(EngineConfig(model=plain, quantization="fp8"))
