"""Tiny random checkpoints of jina-embeddings-v2, whose code isn't in transformers, and a reference for it.

The reference pads nothing and follows the published definition: BERT without positions, a symmetric ALiBi
bias (Press et al. 2022) and gated feed-forward layers; "qk-post-norm" also normalises queries and keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.engine.pooling.tiny_poolers import CONTEXT, VOCAB_SIZE
from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, write_tokenizer_files

HIDDEN, INNER, LAYERS, EPS = 36, 48, 2, 1e-12
SLOPES_OF_6_HEADS = (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)


def make_jina_bert(directory: Path, *, qk_norm: bool = False, num_labels: int | None = None) -> Path:
    directory.mkdir()
    torch.manual_seed(7)
    weights = {
        name: 0.3 * torch.randn(shape) + (1.0 if "orm" in name and name.endswith("weight") else 0.0)
        for name, shape in _shapes(qk_norm, num_labels)
    }
    save_file(weights, directory / "model.safetensors")
    architecture = "JinaBertForMaskedLM" if num_labels is None else "JinaBertForSequenceClassification"
    code = "jinaai/jina-bert-v2-qk-post-norm" if qk_norm else "jinaai/jina-bert-implementation"
    config = {
        "architectures": [architecture],
        "auto_map": {"AutoModel": f"{code}--modeling_bert.JinaBertModel"},
        "model_type": "bert",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": len(SLOPES_OF_6_HEADS),
        "max_position_embeddings": CONTEXT,
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "emb_pooler": "mean",
        "type_vocab_size": 2,
        "layer_norm_eps": EPS,
        **({} if num_labels is None else {"num_labels": num_labels}),
    }
    (directory / "config.json").write_text(json.dumps(config))
    write_tokenizer_files(directory, byte_level_tokenizer())
    return directory


def _shapes(qk_norm: bool, num_labels: int | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "embeddings.word_embeddings.weight", (VOCAB_SIZE, HIDDEN)
    yield "embeddings.token_type_embeddings.weight", (2, HIDDEN)
    yield from _pair("embeddings.LayerNorm", HIDDEN)
    up, down, first, second = _feed_forward_names(qk_norm)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            yield from _pair(f"{prefix}.attention.{name}", HIDDEN, HIDDEN)
        for name in ("self.layer_norm_q", "self.layer_norm_k") if qk_norm else ():
            yield from _pair(f"{prefix}.attention.{name}", HIDDEN)
        yield f"{prefix}.{up}.weight", (2 * INNER, HIDDEN)
        yield from _pair(f"{prefix}.{down}", HIDDEN, INNER)
        for name in (first, second):
            yield from _pair(f"{prefix}.{name}", HIDDEN)
    yield from _pair("pooler.dense", HIDDEN, HIDDEN)
    if num_labels is not None:
        yield from _pair("classifier", num_labels, HIDDEN)


def _pair(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _feed_forward_names(qk_norm: bool) -> tuple[str, str, str, str]:
    """Up, down, the norms after attention and after this layer."""
    if qk_norm:
        return "mlp.up_gated_layer", "mlp.down_layer", "layer_norm_1", "layer_norm_2"
    return "mlp.gated_layers", "mlp.wo", "attention.output.LayerNorm", "mlp.layernorm"


class JinaBertReference:
    def __init__(self, directory: Path) -> None:
        self._weights = load_file(directory / "model.safetensors")
        self._qk_norm = any("layer_norm_q" in name for name in self._weights)

    def hidden(self, token_ids: Sequence[int]) -> torch.Tensor:
        """float32 [T, hidden]."""
        words = self._weights["embeddings.word_embeddings.weight"][list(token_ids)]
        types = self._weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings.LayerNorm", words + types)
        for layer in range(LAYERS):
            x = self._layer(f"encoder.layer.{layer}", x)
        return x

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        pooled = torch.tanh(self._linear("pooler.dense", self.hidden(token_ids)[0]))
        return self._linear("classifier", pooled)

    def _layer(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        up, down, first, second = _feed_forward_names(self._qk_norm)
        x = self._norm(f"{prefix}.{first}", x + self._attend(f"{prefix}.attention", x))
        one, other = F.linear(x, self._weights[f"{prefix}.{up}.weight"]).chunk(2, dim=-1)
        gated = one * F.gelu(other) if self._qk_norm else F.gelu(one) * other
        return self._norm(f"{prefix}.{second}", x + self._linear(f"{prefix}.{down}", gated))

    def _attend(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        length, heads = len(x), len(SLOPES_OF_6_HEADS)
        queries, keys, values = (
            self._linear(f"{prefix}.self.{name}", x) for name in ("query", "key", "value")
        )
        if self._qk_norm:
            queries = self._norm(f"{prefix}.self.layer_norm_q", queries)
            keys = self._norm(f"{prefix}.self.layer_norm_k", keys)
        q, k, v = (one.view(length, heads, -1).transpose(0, 1) for one in (queries, keys, values))
        distances = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        bias = -torch.tensor(SLOPES_OF_6_HEADS)[:, None, None] * distances
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + bias
        attended = (scores.softmax(dim=-1) @ v).transpose(0, 1).reshape(length, -1)
        return self._linear(f"{prefix}.output.dense", attended)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], EPS
        )
