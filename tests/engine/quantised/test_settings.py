"""Which quantised checkpoints the engine reads, judged by their settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.quantisation import METHODS, read_quantisation
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.quantised.formats import FORMATS, format_of

GROUP = {"weights": {"num_bits": 4, "group_size": 32}, "targets": ["Linear"]}


def test_every_method_has_a_class_that_reads_it() -> None:
    assert FORMATS.keys() == METHODS


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "version": "GEMM"}, "awq"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": GROUP}}, "compressed-tensors"),
        ({"format": "pack-quantized", "config_groups": {"a": GROUP}}, "compressed-tensors"),
    ],
)
def test_settings_of_what_runs(settings: dict[str, Any], method: str, tmp_path: Path) -> None:
    found = read_quantisation(tmp_path, {"quantization_config": settings})
    assert found is not None
    assert found.method == method
    format_of(found)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "hqq"}, "quant_method 'hqq'"),
        ({"quant_method": "aqlm"}, "quant_method 'aqlm'"),
        ({"quant_method": "exl2"}, "quant_method 'exl2'"),
        ({"bits": 4}, "quant_method 'unknown'"),
        ("4bit", "quant_method 'unknown'"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "checkpoint_format 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"}, "checkpoint_format 'bitblas'"),
        ({"quant_method": "gptq", "bits": 5}, "5 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
        ({"quant_method": "awq", "bits": 8}, "8 bits"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo 'NVFP4'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size [128]"),
        ({"quant_method": "fbgemm_fp8", "weight_block_size": [0, 0]}, "weight_block_size [0, 0]"),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "weight_block_size": []},
            "weight_block_size []",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {**GROUP, "format": "marlin-24"}}},
            "format 'marlin-24'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"a": GROUP},
            },
            "format 'nvfp4-pack-quantized'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": GROUP},
                "sparsity_config": {"format": "sparse-24-bitmask"},
            },
            "sparsity 'sparse-24-bitmask'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": GROUP},
                "transform_config": {"x": 1},
            },
            "transform_config",
        ),
    ],
)
def test_settings_of_what_does_not_run_are_named(settings: object, named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read_quantisation(tmp_path, {"quantization_config": settings})
    assert named in caught.value.message
    assert "vLLM may run it" in caught.value.message


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq"},
        {"quant_method": "gptq", "bits": "four"},
        {"quant_method": "fp8", "weight_block_size": 128},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": [GROUP]},
        *(
            {"quant_method": "compressed-tensors", "config_groups": {"a": {**GROUP, **wrong}}}
            for wrong in (
                {"targets": 5},
                {"targets": "re:.*"},
                {"targets": ["re:["]},
                {"input_activations": "int8"},
                {"weights": {"num_bits": 8, "strategy": "block", "block_structure": "128x128"}},
                {"weights": {"num_bits": 8, "strategy": "block", "block_structure": [0, 0]}},
                {"weights": {"num_bits": 8, "strategy": "group"}},
            )
        ),
    ],
)
def test_settings_that_cannot_be_read_are_an_error_of_the_checkpoint(
    settings: object, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="settings can't be read"):
        read_quantisation(tmp_path, {"quantization_config": settings})


@pytest.mark.parametrize(
    ("name", "content", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, "gptq"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, "awq"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "modelopt"),
    ],
)
def test_quantisers_own_files(name: str, content: dict[str, Any], method: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    found = read_quantisation(tmp_path, {})
    assert found is not None
    assert found.method == method


def test_config_json_comes_before_a_quantisers_file(tmp_path: Path) -> None:
    (tmp_path / "quant_config.json").write_text("{}")
    found = read_quantisation(tmp_path, {"compression_config": {"quant_method": "fp8"}})
    assert found is not None
    assert found.method == "fp8"


def test_a_checkpoint_without_settings_is_not_quantised(tmp_path: Path) -> None:
    assert read_quantisation(tmp_path, {"quantization_config": None}) is None


def test_mlx_is_refused_with_what_runs_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="mlx-lm"):
        read_quantisation(tmp_path, {"quantization": {"group_size": 64, "bits": 4}})
