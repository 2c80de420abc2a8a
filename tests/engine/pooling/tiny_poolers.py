"""Makes tiny random checkpoints that pool, with transformers, which is also the reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, write_tokenizer_files

VOCAB_SIZE = 320
CONTEXT = 64

_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}
_ROBERTA = {**_ENCODER, "max_position_embeddings": CONTEXT + 3, "pad_token_id": 2, "type_vocab_size": 1}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}

_SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
_ROTARY = {**_ENCODER, "bos_token_id": 0, "eos_token_id": 0}
_MODERN = {**_ENCODER, **_SPECIAL, "num_hidden_layers": 4, "local_attention": 8}
_DISTIL = {
    "vocab_size": VOCAB_SIZE,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}

# name → transformers' class, its configuration
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", _ENCODER),
    "bert-gelu-new": ("BertModel", {**_ENCODER, "hidden_act": "gelu_new"}),
    "bert-masked": ("BertForMaskedLM", _ENCODER),
    "roberta": ("RobertaModel", _ROBERTA),
    "xlm-roberta": ("XLMRobertaModel", _ROBERTA),
    "bert-cross": ("BertForSequenceClassification", {**_ENCODER, "num_labels": 1}),
    "bert-three": ("BertForSequenceClassification", {**_ENCODER, "num_labels": 3}),
    "xlm-cross": ("XLMRobertaForSequenceClassification", {**_ROBERTA, "num_labels": 1}),
    "roberta-two": ("RobertaForSequenceClassification", _ROBERTA),
    "camembert": ("CamembertModel", _ROBERTA),
    "electra": ("ElectraModel", {**_ENCODER, "embedding_size": 16}),
    "electra-two": ("ElectraForSequenceClassification", _ENCODER),
    "electra-pretraining": ("ElectraForPreTraining", _ENCODER),
    "distilbert": ("DistilBertModel", _DISTIL),
    "distilbert-masked": ("DistilBertForMaskedLM", _DISTIL),
    "distilbert-cross": ("DistilBertForSequenceClassification", {**_DISTIL, "num_labels": 1}),
    "mpnet": ("MPNetModel", {**_ROBERTA, "pad_token_id": 1}),
    "mpnet-cross": ("MPNetForSequenceClassification", {**_ROBERTA, "pad_token_id": 1, "num_labels": 1}),
    "modernbert": ("ModernBertModel", _MODERN),
    "modernbert-masked": ("ModernBertForMaskedLM", _MODERN),
    "modernbert-biased": (
        "ModernBertModel",
        {**_MODERN, "norm_bias": True, "attention_bias": True, "mlp_bias": True},
    ),
    "modernbert-cross": ("ModernBertForSequenceClassification", {**_MODERN, "num_labels": 1}),
    "modernbert-mean": (
        "ModernBertForSequenceClassification",
        {**_MODERN, "classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True},
    ),
    "nomic": ("NomicBertModel", _ROTARY),
    "nomic-cross": ("NomicBertForSequenceClassification", {**_ROTARY, "num_labels": 1}),
    "gte": ("GteModel", _ROTARY),
    "gte-without-types": ("GteModel", {**_ROTARY, "type_vocab_size": 0}),
    "gte-cross": ("GteForSequenceClassification", {**_ROTARY, "num_labels": 1}),
    "jina-v3": ("JinaEmbeddingsV3Model", _ROTARY),
    "jina-v3-two": ("JinaEmbeddingsV3ForSequenceClassification", _ROTARY),
    "qwen3": ("Qwen3ForCausalLM", {**_DECODER, "tie_word_embeddings": True}),
    "qwen3-untied": ("Qwen3ForCausalLM", {**_DECODER, "tie_word_embeddings": False}),
    "qwen3-bare": ("Qwen3Model", _DECODER),
    "qwen3-cross": ("Qwen3ForSequenceClassification", {**_DECODER, "num_labels": 1}),
    "mistral-bare": ("MistralModel", {**_DECODER, "sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", {**_DECODER, "tie_word_embeddings": False}),
    "qwen2-cross": ("Qwen2ForSequenceClassification", {**_DECODER, "num_labels": 1}),
    "phi3-three": ("Phi3ForSequenceClassification", {**_DECODER, **_SPECIAL, "num_labels": 3}),
    "olmo2-bare": ("Olmo2Model", {**_DECODER, **_SPECIAL}),
    "llama-bare": ("LlamaModel", _DECODER),
    "llama-cross": ("LlamaForSequenceClassification", {**_DECODER, "num_labels": 1}),
    "eurobert": ("EuroBertModel", {**_DECODER, **_SPECIAL}),
    "eurobert-masked": ("EuroBertForMaskedLM", {**_DECODER, **_SPECIAL}),
    "gemma2-bare": ("Gemma2Model", {**_DECODER, **_SPECIAL}),
    "gemma3": (
        "Gemma3TextModel",
        {
            **_DECODER,
            **_SPECIAL,
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "use_bidirectional_attention": True,
        },
    ),
    "llama-three": ("LlamaForSequenceClassification", {**_DECODER, "num_labels": 3}),
}


def make_pooler(name: str, root: Path, **config: Any) -> Path:
    """Write one of RECIPES, with a tokenizer. Norms and biases are random, so that a forgotten one shows.

    `config` changes config.json afterwards; None takes a key out.
    """
    return make_sized_pooler(name, root, {}, config)


def make_sized_pooler(
    name: str, root: Path, sizes: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Path:
    """As `make_pooler`; `sizes` changes the recipe."""
    class_name, options = RECIPES[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(model_class.config_class(**{**options, **sizes}))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name.lower() and parameter_name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter_name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    directory = root / name
    model.save_pretrained(directory)
    write_tokenizer_files(directory, byte_level_tokenizer())
    if config:
        path = directory / "config.json"
        merged = {**json.loads(path.read_text()), **config}
        path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
    return directory


def write_modules(directory: Path, mode: str, *, normalize: bool = True, max_seq_length: int = 0) -> Path:
    """sentence-transformers' files, which make an embedding model of a checkpoint."""
    kinds = [
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        *([("Normalize", "2_Normalize")] if normalize else []),
    ]
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (kind, path) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    if max_seq_length:
        limits = {"max_seq_length": max_seq_length}
        (directory / "sentence_bert_config.json").write_text(json.dumps(limits))
    return directory


@lru_cache(maxsize=8)
def _reference(model_class: Any, directory: Path) -> Any:
    return model_class.from_pretrained(directory, dtype=torch.float32)


@torch.inference_mode()
def hidden_of(directory: Path, token_ids: Sequence[int]) -> torch.Tensor:
    """transformers' last hidden states of one sequence: float32 [T, hidden]."""
    model = _reference(transformers.AutoModel, directory)
    result: torch.Tensor = model(input_ids=torch.tensor([list(token_ids)])).last_hidden_state[0]
    return result


@torch.inference_mode()
def logits_of(
    directory: Path, token_ids: Sequence[int], type_ids: Sequence[int] | None = None
) -> torch.Tensor:
    """transformers' logits of one sequence: float32 [num_labels]."""
    model = _reference(transformers.AutoModelForSequenceClassification, directory)
    types = {} if type_ids is None else {"token_type_ids": torch.tensor([list(type_ids)])}
    result: torch.Tensor = model(input_ids=torch.tensor([list(token_ids)]), **types).logits[0]
    return result
