"""Checkpoints that the embedded engine can't run, as people download them, and what is to be said of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "models" / "berth-demo"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4400000000\n"


@dataclass(frozen=True)
class Broken:
    make: Callable[[Path], None]  # of a whole checkpoint
    says: str
    helps: str = ""  # what can run it
    is_damaged: bool = False  # the file itself is wrong, whatever it would say
    by_engine_alone: bool = False  # it takes a look into large files


def changed(**changes: Any) -> Callable[[Path], None]:
    """config.json with other values; None takes a key out."""

    def make(directory: Path) -> None:
        path = directory / "config.json"
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return make


def only(**files: Any) -> Callable[[Path], None]:
    """Nothing but these, by name with __ for a dot: text, or an object as JSON."""

    def make(directory: Path) -> None:
        for path in directory.iterdir():
            path.unlink()
        beside(**files)(directory)

    return make


def beside(**files: Any) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        for name, content in files.items():
            text = json.dumps(content) if isinstance(content, Mapping) else content
            (directory / name.replace("__", ".")).write_text(text)

    return make


def without(*names: str, **files: Any) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()
        beside(**files)(directory)

    return make


def in_shards(*present: str, index: bool) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / present[0])
        for name in present[1:]:
            (directory / name).touch()
        if index:
            weight_map = {f"layer.{number}": name for number, name in enumerate(_SHARDS)}
            beside(model__safetensors__index__json={"weight_map": weight_map})(directory)

    return make


def cut_short(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def of(architecture: str) -> Broken:
    return Broken(changed(architectures=[architecture]), f"'{architecture}'", "engine: vllm")


def refused_by_transformers(architecture: str, model_type: str, says: str, **changes: Any) -> Broken:
    make = changed(architectures=[architecture], model_type=model_type, **changes)
    return Broken(make, says, "engine: vllm", by_engine_alone=True)


def quantised(method: str, **settings: Any) -> Broken:
    make = changed(quantization_config={"quant_method": method, **settings})
    return Broken(make, f"quant_method '{method}'", "engine: vllm")


BROKEN: dict[str, Broken] = {
    "diffuses-text": of("LLaDAModelLM"),
    "carries-a-state": refused_by_transformers("RwkvForCausalLM", "rwkv", "in a form of its own"),
    "attention-of-its-own": refused_by_transformers("BloomForCausalLM", "bloom", "attention interface"),
    "unknown": refused_by_transformers("NewForCausalLM", "new", "isn't known to transformers 5."),
    "code-of-its-own": refused_by_transformers(
        "NewForCausalLM", "new", "(auto_map)", auto_map={"AutoModel": "modeling_new.NewForCausalLM"}
    ),
    "no-type": Broken(
        changed(architectures=["Cohere2ForCausalLM"], model_type=None),
        "config.json has no model_type, by which the code for Cohere2ForCausalLM is found",
        is_damaged=True,
        by_engine_alone=True,
    ),
    "two-families": refused_by_transformers("BitNetForCausalLM", "qwen3", "'BitNetForCausalLM'"),
    "sees-pictures": refused_by_transformers(
        "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "text from text alone"
    ),
    "hears": refused_by_transformers("WhisperForConditionalGeneration", "whisper", "text from text alone"),
    "no-architectures": Broken(changed(architectures=None), "architectures is None", "engine: vllm"),
    "two-architectures": Broken(changed(architectures=["A", "B"]), "architectures is ['A', 'B']"),
    "hqq": quantised("hqq"),
    "aqlm": quantised("aqlm"),
    "exl2": quantised("exl2", bits=4.0),
    "fp8": quantised("fp8", weight_block_size=[128]),
    "awq": quantised("awq", bits=4, version="gemv"),
    "gptq": quantised("gptq", bits=4, is_marlin_format=True),
    "gptq-with-other-bits": quantised("gptq", bits=5),
    "compressed-tensors": quantised(
        "compressed-tensors", config_groups={"a": {"format": "marlin-24", "weights": {"num_bits": 4}}}
    ),
    "compressed-tensors-sparse": quantised(
        "compressed-tensors", config_groups={}, sparsity_config={"format": "sparse-24-bitmask"}
    ),
    "compressed-tensors-rotated": quantised(
        "compressed-tensors", config_groups={}, transform_config={"a": 1}
    ),
    "quantised-with-no-method": Broken(
        changed(quantization_config={"bits": 4}), "quant_method 'unknown'", "engine: vllm"
    ),
    "modelopt": Broken(beside(hf_quant_config__json={}), "quant_method 'modelopt'", "engine: vllm"),
    "older-awq": Broken(beside(quant_config__json={"w_bit": 8}), "quant_method 'awq'", "engine: vllm"),
    "older-gptq": Broken(beside(quantize_config__json={"bits": 6}), "quant_method 'gptq'", "engine: vllm"),
    "mlx": Broken(changed(quantization={"bits": 4, "group_size": 64}), "quantised for MLX", "mlx-lm"),
    "gguf": Broken(  # which of them?
        only(model__gguf="GGUF", other__gguf="GGUF"), "holds GGUF weights only", "llama.cpp"
    ),
    "gguf-with-its-config": Broken(
        without("model.safetensors", model__gguf="GGUF"), "holds GGUF weights only", "llama.cpp"
    ),
    "nothing": Broken(only(), "has no config.json: it is not a model"),
    "no-config": Broken(without("config.json"), "has no config.json: its download isn't finished"),
    "no-json": Broken(
        beside(config__json="{nope"), "config.json can't be read: Expecting property name", is_damaged=True
    ),
    "no-object": Broken(beside(config__json="[]"), "doesn't contain a JSON object", is_damaged=True),
    "no-values": Broken(beside(config__json="{}"), "architectures is None", "engine: vllm"),
    "empty-config": Broken(
        beside(config__json=""), "config.json can't be read: Expecting value", is_damaged=True
    ),
    "makers-format": Broken(only(params__json={"dim": 4096}), "its maker's own format", "engine: vllm"),
    "adapter": Broken(
        only(adapter_config__json={"base_model_name_or_path": "o/base"}, adapter_model__safetensors="x"),
        "is a LoRA adapter of 'o/base'",
        "enable_lora",
    ),
    "adapter-with-a-config": Broken(
        without("model.safetensors", adapter_config__json={}, adapter_model__safetensors="x"),
        "is a LoRA adapter",
        "enable_lora",
    ),
    "diffusion": Broken(
        only(model_index__json={"_class_name": "FluxPipeline"}), "diffusion pipeline", "engine: command"
    ),
    "pickled": Broken(
        without("model.safetensors", pytorch_model__bin="x"), "pickled weights (pytorch_model.bin)", "vllm"
    ),
    "no-weights": Broken(without("model.safetensors"), "it contains no weights"),
    "training-left-overs": Broken(
        without("model.safetensors", training_args__bin="x", optimizer__pt="x"), "it contains no weights"
    ),
    "missing-shard": Broken(in_shards(_SHARDS[0], index=True), f"lacks {_SHARDS[1]}, which its index names"),
    "missing-shard-without-index": Broken(in_shards(_SHARDS[1], index=False), f"lacks {_SHARDS[0]}"),
    "lfs-pointer": Broken(beside(model__safetensors=_POINTER), "Git LFS pointer", "git lfs pull"),
    "cut-short": Broken(cut_short, "only the beginning of model.safetensors", by_engine_alone=True),
    "no-tokenizer": Broken(without("tokenizer.json"), "has no tokenizer"),
}


def make_broken(kind: str, parent: Path) -> Path:
    """A folder of this name with such a checkpoint."""
    directory = parent / kind
    shutil.copytree(DEMO, directory)
    BROKEN[kind].make(directory)
    return directory
