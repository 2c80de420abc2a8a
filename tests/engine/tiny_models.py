"""Makes tiny random checkpoints with transformers, which is also the reference for the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.models.decoder_config import DecoderConfig
from engine.models.registry import generating_architecture

VOCAB_SIZE = 320
CONTEXT = 512

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,  # wide, so that the greedy continuation isn't one token for ever
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_QWEN3_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made."""

    architecture: str
    options: dict[str, Any]
    max_shard_size: str = "1GB"


RECIPES = {
    "qwen3-tied": Recipe(
        "qwen3",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rope_parameters": _QWEN3_ROPE,
        },
    ),
    "qwen3-untied-sharded": Recipe(
        "qwen3",
        {
            "tie_word_embeddings": False,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_parameters": _QWEN3_ROPE,
        },
        max_shard_size="100KB",
    ),
    "llama3-tied": Recipe(
        "llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 2, "rope_parameters": _LLAMA3_ROPE},
    ),
    "llama-untied-bias": Recipe(
        "llama",
        {"tie_word_embeddings": False, "num_key_value_heads": 4, "attention_bias": True},
    ),
}


def make_checkpoint(name: str, directory: Path) -> Path:
    """Write one of RECIPES in float32. Norms and biases are random, so that a forgotten one shows."""
    recipe = RECIPES[name]
    torch.manual_seed(sum(map(ord, name)))
    model: Any
    if recipe.architecture == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**_SHAPE, **recipe.options))
    else:
        model = LlamaForCausalLM(LlamaConfig(**_SHAPE, **recipe.options))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif "embed_tokens" in parameter_name:
                parameter.mul_(0.2)  # or, where embeddings are tied, each token would predict itself
            elif parameter_name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    path = directory / name
    model.save_pretrained(path, max_shard_size=recipe.max_shard_size)
    return path


class Reference:
    """Plain transformers on one checkpoint."""

    def __init__(self, path: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The greedy continuation, end-of-sequence tokens ignored."""
        output = self._model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Of every position: float32 [len(tokens), VOCAB_SIZE]."""
        result: torch.Tensor = self._model(torch.tensor([tokens])).logits[0]
        return result


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    tokens: list[int] = torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist()
    return tokens


def read_model_config(directory: Path, overrides: Mapping[str, Any] | None = None) -> DecoderConfig:
    """Of a checkpoint that one of the engine's own classes generates text with."""
    name = architecture_of(directory, read_raw_config(directory, overrides))
    return generating_architecture(name).read_config(directory, overrides)
