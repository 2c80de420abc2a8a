"""Quantised checkpoints and GGUF files of families that transformers' own code computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
)

from engine.checkpoint.gguf_config import ARCHITECTURES
from engine.models.quantised.checkpoint import open_checkpoint
from engine.models.quantised.gguf_directory import as_directory
from engine.models.transformers_backend.family import read_transformers_config
from engine.models.transformers_backend.loading import load
from tests.engine.parallel.thread_ranks import ranks_in_threads
from tests.engine.quantised.gguf_models import f32, metadata_of
from tests.engine.quantised.gguf_writer import Tensor, write
from tests.engine.quantised.test_gguf_tokenizer import byte_level
from tests.engine.quantised.test_mxfp4 import e2m1
from tests.engine.test_generation import core_of, greedy, run

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 0,
}
TOKENS = torch.tensor([[5, 9, 33, 17, 2, 60, 41]])


def logits_of(directory: Path) -> torch.Tensor:
    """By the engine's way into transformers."""
    config = read_transformers_config(directory)
    with open_checkpoint(directory) as source:
        model = load(config, source, attention="eager", dtype=torch.float32, device=torch.device("cpu"))
    with torch.inference_mode():
        return model(TOKENS, use_cache=False).logits  # type: ignore[no-any-return]


def generated(model: Path, **options: Any) -> list[int]:
    """By the whole engine."""
    return run(core_of(model, max_model_len=64, **options), [greedy("r", TOKENS[0].tolist())])["r"]


def plain_logits(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(TOKENS, use_cache=False).logits  # type: ignore[no-any-return]


def mxfp4(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Experts [experts, in, out]: their blocks and scales, and what they stand for."""
    codes = torch.tensor([e2m1(code) for code in range(16)])
    blocks = weight.transpose(1, 2).reshape(len(weight), weight.shape[2], -1, 32)
    exponents = (blocks.abs().amax(-1).clamp(min=1e-6) / 6).log2().ceil()
    scaled = blocks / torch.exp2(exponents)[..., None]
    nearest = (scaled[..., None] - codes).abs().argmin(-1).to(torch.uint8)
    stored = {
        "_blocks": nearest[..., 0::2] | nearest[..., 1::2] << 4,
        "_scales": (exponents + 127).to(torch.uint8),
    }
    dequantised = codes[nearest.int()] * torch.exp2(exponents)[..., None]
    return stored, dequantised.flatten(-2).transpose(1, 2).contiguous()


def test_gpt_oss_with_its_experts_in_mxfp4(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(
        **SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, initializer_range=0.1
    )
    GptOssForCausalLM(config).save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in list(plain.items()):
        if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name:
            parts, plain[name] = mxfp4(tensor)
            stored |= {f"{name}{part}": value for part, value in parts.items()}
        else:
            stored[name] = tensor
    save_file(plain, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    (tmp_path / "quantised").mkdir()
    save_file(stored, tmp_path / "quantised" / "model.safetensors", {"format": "pt"})
    values = json.loads((tmp_path / "plain" / "config.json").read_text())
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "quantised" / "config.json").write_text(
        json.dumps({**values, "quantization_config": settings})
    )
    assert len(stored) == len(plain) + 4
    assert torch.allclose(logits_of(tmp_path / "quantised"), plain_logits(tmp_path / "plain"), atol=1e-5)
    tokens = generated(tmp_path / "plain")
    assert generated(tmp_path / "quantised") == tokens
    with ranks_in_threads():
        assert generated(tmp_path / "quantised", tensor_parallel_size=2) == tokens


def test_gemma3_from_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its norms are stored with one added; its windows and both rotary bases come from the metadata."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 7}, query_pre_attn_scalar=16, sliding_window=4, initializer_range=0.1
    )
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "plain")
    names = {f"model.{new}": old for old, new in (("token_embd", "embed_tokens"), ("output_norm", "norm"))}
    names |= {new: old for old, new in ARCHITECTURES["gemma3"].layer_names.items()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(tmp_path / "plain" / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        leaf = stem.split(".", 3)[3] if stem.startswith("model.layers.") else stem
        prefix = f"blk.{stem.split('.')[2]}." if leaf != stem else ""
        tensors[f"{prefix}{names[leaf]}.{kind}"], _ = f32(tensor + 1 if leaf.endswith("norm") else tensor)
    values = {**json.loads((tmp_path / "plain" / "config.json").read_text()), "model_type": "gemma3"}
    values["rope_parameters"] = {"rope_theta": 1_000_000.0}
    metadata = {**metadata_of(values), "gemma3.attention.sliding_window": 4, **byte_level()}
    write(tmp_path / "m.gguf", metadata, tensors)
    found = logits_of(as_directory(tmp_path / "m.gguf"))
    assert torch.allclose(found, plain_logits(tmp_path / "plain"), atol=1e-5)
    assert generated(tmp_path / "m.gguf") == generated(tmp_path / "plain")
