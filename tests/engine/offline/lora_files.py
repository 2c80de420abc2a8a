"""Random LoRA adapters as PEFT saves them, and their models with the adapter merged in, by the definition."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def write_adapter(
    model: Path, directory: Path, *, targets: Sequence[str] = ALL, rank: int = 4, seed: int = 0, **config: Any
) -> Path:
    """An adapter for every module of `model` whose name ends with one of `targets`."""
    generator = torch.Generator().manual_seed(seed)
    directory.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)}
    settings |= {"bias": "none", "modules_to_save": None, "use_dora": False, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(targets)) and weight.dim() == 2:
            a = torch.randn(rank, weight.shape[1], generator=generator)
            b = torch.randn(weight.shape[0], rank, generator=generator)
            tensors[f"base_model.model.{module}.lora_A.weight"] = a * 0.2
            tensors[f"base_model.model.{module}.lora_B.weight"] = b * 0.2
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def merge(model: Path, adapter: Path, directory: Path) -> Path:
    """The model with W + s B A for each W that the adapter changes."""
    shutil.copytree(model, directory)
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    weights = load_file(model / "model.safetensors")
    adapted = load_file(adapter / "adapter_model.safetensors")
    for name, a in adapted.items():
        if name.endswith(".lora_A.weight"):
            b = adapted[name.replace("lora_A", "lora_B")]
            own = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[own] = (weights[own].double() + scaling * b.double() @ a.double()).float()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
