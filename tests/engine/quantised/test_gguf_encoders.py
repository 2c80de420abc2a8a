"""Embedding models and rerankers in GGUF files, as llama.cpp writes them, against transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from engine.config import EngineConfig
from engine.errors import UnsupportedModel
from engine.models.quantised.gguf_directory import as_directory
from engine.pooling.plan import RunnerKind, choose_runner
from tests.engine.pooling.jina_bert import JinaBertReference, make_jina_bert
from tests.engine.pooling.test_models import INPUTS, check, core_of
from tests.engine.pooling.tiny_poolers import hidden_of, logits_of, make_pooler, make_sized_pooler
from tests.engine.quantised.gguf_families import gguf_name as family_name
from tests.engine.quantised.gguf_models import f32, gguf_name
from tests.engine.quantised.gguf_writer import write
from tests.engine.quantised.test_gguf_tokenizer import byte_level

BERT = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
}
NOMIC = {  # as its own code names them
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "emb_ln": "token_embd_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "norm1": "attn_output_norm",
    "mlp.fc11": "ffn_up",
    "mlp.fc12": "ffn_gate",
    "mlp.fc2": "ffn_down",
    "norm2": "layer_output_norm",
}
JINA = {**BERT, "mlp.gated_layers": "ffn_up", "mlp.wo": "ffn_down", "mlp.layernorm": "layer_output_norm"}
MODERN = {
    "embeddings.tok_embeddings": "token_embd",
    "embeddings.norm": "token_embd_norm",
    "final_norm": "output_norm",
    "attn_norm": "attn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.Wo": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.Wi": "ffn_up",
    "mlp.Wo": "ffn_down",
}
_LAYER = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.(.*)")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stored(directory: Path) -> Tensors:
    prefix = re.compile(r"^(bert|roberta|model|nomic_bert)\.")
    return {prefix.sub("", name): t for name, t in load_file(directory / "model.safetensors").items()}


def named(name: str, names: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    match = _LAYER.fullmatch(stem)
    return f"{names[stem]}.{kind}" if match is None else f"blk.{match[1]}.{names[match[2]]}.{kind}"


def written(
    directory: Path, architecture: str, names: Mapping[str, str], tensors: Tensors, **keys: Any
) -> Path:
    """The directory that the engine makes of the GGUF file with these tensors."""
    config = json.loads((directory / "config.json").read_text())
    values = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.layer_norm_epsilon": config.get("layer_norm_eps") or config["norm_eps"],
        "attention.causal": False,
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    metadata = {f"{architecture}.{key}": value for key, value in values.items()}
    file = directory.parent / f"{architecture}.gguf"
    in_file = {named(name, names): f32(tensor)[0] for name, tensor in tensors.items()}
    write(file, {"general.architecture": architecture, **metadata, **byte_level()}, in_file)
    return as_directory(file)


def first(directory: Path) -> list[torch.Tensor]:
    return [F.normalize(hidden_of(directory, one)[0], dim=0) for one in INPUTS]


def mean(directory: Path) -> list[torch.Tensor]:
    return [F.normalize(hidden_of(directory, one).mean(0), dim=0) for one in INPUTS]


def test_bert_pools_as_the_file_says(tmp_path: Path) -> None:
    plain = make_pooler("bert", tmp_path)
    tensors = {name: t for name, t in stored(plain).items() if not name.startswith("pooler.")}
    check(core_of(written(plain, "bert", BERT, tensors, pooling_type=1)), mean(plain))
    check(core_of(written(plain, "bert", BERT, tensors, pooling_type=2)), first(plain))


def test_roberta_is_stored_as_bert_without_the_rows_of_padding(tmp_path: Path) -> None:
    plain = make_pooler("xlm-roberta", tmp_path)
    tensors = {name: t for name, t in stored(plain).items() if not name.startswith("pooler.")}
    tensors["embeddings.position_embeddings.weight"] = tensors["embeddings.position_embeddings.weight"][3:]
    check(core_of(written(plain, "bert", BERT, tensors, pooling_type=2)), first(plain))


def test_a_reranker(tmp_path: Path) -> None:
    plain = make_pooler("xlm-cross", tmp_path)
    tensors = stored(plain)
    tensors["embeddings.position_embeddings.weight"] = tensors["embeddings.position_embeddings.weight"][3:]
    directory = written(plain, "bert", BERT, tensors, pooling_type=4)
    check(core_of(directory), [logits_of(plain, one).sigmoid() for one in INPUTS])


@pytest.mark.skipif(not hasattr(transformers, "NomicBertModel"), reason="this transformers has no such model")
def test_nomic_has_its_projections_in_one(tmp_path: Path) -> None:
    plain = make_pooler("nomic", tmp_path)
    tensors = {name: t for name, t in stored(plain).items() if not name.startswith("pooler.")}
    config = json.loads((plain / "config.json").read_text())
    keys: dict[str, Any] = {
        "rope__freq_base": float(config["rope_parameters"]["rope_theta"]),
        "pooling_type": 1,
    }
    check(core_of(written(plain, "nomic-bert", NOMIC, tensors, **keys)), mean(plain))


def test_modernbert(tmp_path: Path) -> None:
    plain = make_pooler("modernbert", tmp_path)
    config = json.loads((plain / "config.json").read_text())
    thetas = {kind: float(rope["rope_theta"]) for kind, rope in config["rope_parameters"].items()}
    keys: dict[str, Any] = {
        "attention__sliding_window": config["local_attention"],
        "attention__sliding_window_pattern": 3,
        "rope__freq_base": thetas["full_attention"],
        "rope__freq_base_swa": thetas["sliding_attention"],
        "rope__scaling.type": "none",
        "pooling_type": 2,
    }
    check(core_of(written(plain, "modern-bert", MODERN, stored(plain), **keys)), first(plain))


def test_jina(tmp_path: Path) -> None:
    """Its gates and ups are in one tensor, or (in older files) in two."""
    plain = make_jina_bert(tmp_path / "plain")
    reference = JinaBertReference(plain)
    expected = [F.normalize(reference.hidden(one).mean(0), dim=0) for one in INPUTS]
    tensors = {name: t for name, t in stored(plain).items() if not name.startswith("pooler.")}
    check(core_of(written(plain, "jina-bert-v2", JINA, tensors, pooling_type=1)), expected)
    apart: Tensors = {}
    for name, tensor in tensors.items():
        parts = tensor.chunk(2) if "gated_layers" in name else (tensor,)
        ends = ("gate", "up") if len(parts) == 2 else ("gated_layers",)
        apart |= {name.replace("gated_layers", end): part for end, part in zip(ends, parts, strict=True)}
    names = {**JINA, "mlp.gate": "ffn_gate", "mlp.up": "ffn_up"}
    check(core_of(written(plain, "jina-bert-v2", names, apart, pooling_type=1)), expected)


def test_a_decoder_whose_file_says_how_it_pools(tmp_path: Path) -> None:
    """As Qwen3-Embedding's files do; one without runs as a model that generates."""
    plain = make_pooler("qwen3", tmp_path)
    config = json.loads((plain / "config.json").read_text())
    tensors = {gguf_name(name): f32(t)[0] for name, t in load_file(plain / "model.safetensors").items()}
    values = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "pooling_type": 3,
    }
    metadata = {"general.architecture": "qwen3", **{f"qwen3.{k}": v for k, v in values.items()}}
    directory = as_directory(write(tmp_path / "m.gguf", {**metadata, **byte_level()}, tensors))
    core = core_of(directory)
    check(core, [F.normalize(hidden_of(plain, one)[-1], dim=0) for one in INPUTS])
    del metadata["qwen3.pooling_type"]
    other = as_directory(write(tmp_path / "n.gguf", {**metadata, **byte_level()}, tensors))
    assert choose_runner(EngineConfig(model=other)) is RunnerKind.GENERATE
    assert choose_runner(EngineConfig(model=directory)) is RunnerKind.POOLING


def test_embeddinggemma_looks_both_ways(tmp_path: Path) -> None:
    slides = {"layer_types": ["sliding_attention"] * 3, "query_pre_attn_scalar": 8}
    plain = make_sized_pooler("gemma3", tmp_path, slides)
    config = json.loads((plain / "config.json").read_text())
    own = {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    tensors = {}
    for name, tensor in stored(plain).items():
        stored_name = family_name(f"model.{name}", own)
        tensors[stored_name] = f32(tensor + 1 if "norm" in stored_name else tensor)[0]
    values = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.sliding_window": config["sliding_window"],
        "rope.freq_base": 1_000_000.0,
        "pooling_type": 1,
    }
    metadata = {f"gemma-embedding.{key}": value for key, value in values.items()}
    metadata = {"general.architecture": "gemma-embedding", **metadata, **byte_level()}
    check(core_of(as_directory(write(tmp_path / "m.gguf", metadata, tensors))), mean(plain))
    projected = {**tensors, "dense_2.weight": f32(torch.ones(4, 4))[0]}
    directory = as_directory(write(tmp_path / "n.gguf", metadata, projected))
    with pytest.raises(UnsupportedModel, match=r"has a tensor 'dense_2\.weight'"):
        core_of(directory)


def test_embedding_models_of_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    for architecture in ("nomic-bert-moe", "neo-bert", "t5encoder", "jina-bert-v3"):
        file = write(tmp_path / "m.gguf", {"general.architecture": architecture}, {})
        with pytest.raises(UnsupportedModel, match=f"architecture '{architecture}'"):
            as_directory(file)
