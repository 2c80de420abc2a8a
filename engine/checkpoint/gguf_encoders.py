"""The encoders that are read from GGUF files, by llama.cpp's names of their architectures."""

from __future__ import annotations

from collections.abc import Mapping

from engine.checkpoint.gguf_architecture import Architecture
from engine.checkpoint.gguf_fields import Config, Fields

_AROUND = {
    "token_embd": "embeddings.word_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
}
_LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_BERT_LAYER = {**_LAYER, "ffn_up": "intermediate.dense"}
_GATED = {**_LAYER, "ffn_gate": "intermediate.gate", "ffn_up": "intermediate.up"}
_HEAD = {"cls": "pooler.dense", "cls.output": "classifier"}


def _bert(fields: Fields, config: Config) -> Config:
    """RoBERTa's files are of this architecture, too: their positions begin with the first row."""
    labels = fields.file.metadata.get("bert.classifier.output_labels")
    head = fields.file.tensors.get("cls.output.weight")
    num_labels = 1 if head is None else head.shape[0]
    known = labels if isinstance(labels, list) and len(labels) == num_labels else range(num_labels)
    return {
        "max_position_embeddings": fields.rows("position_embd.weight"),
        "type_vocab_size": fields.rows("token_types.weight"),
        "hidden_act": "gelu",
        "id2label": {str(number): str(label) for number, label in enumerate(known)},
    }


def _nomic(fields: Fields, config: Config) -> Config:
    return {
        "type_vocab_size": fields.rows("token_types.weight"),
        "activation_function": "swiglu",
        "attention_bias": "blk.0.attn_qkv.bias" in fields.file.tensors,
    }


def _jina(fields: Fields, config: Config) -> Config:
    return {
        "type_vocab_size": fields.rows("token_types.weight"),
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "emb_pooler": "mean",
    }


def _modern(fields: Fields, config: Config) -> Config:
    tensors = fields.file.tensors
    theta = config["rope_theta"]
    return {
        "local_attention": fields.integer("attention.sliding_window"),
        "global_attn_every_n_layers": fields.integer("attention.sliding_window_pattern", 3),
        "global_rope_theta": theta,
        "local_rope_theta": fields.number("rope.freq_base_swa", theta),
        "norm_eps": config["layer_norm_eps"],
        "norm_bias": "output_norm.bias" in tensors,
        "attention_bias": "blk.0.attn_qkv.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "hidden_activation": "gelu",
        "rope_theta": None,
    }


_BERT = Architecture(
    "BertModel",
    "bert",
    _BERT_LAYER,
    _bert,
    around=_AROUND,
    layers="encoder.layer",
    eps="layer_norm_eps",
    is_encoder=True,
)
_RERANKER = _BERT.but(name="BertForSequenceClassification", around={**_AROUND, **_HEAD})
_JINA = _BERT.but(name="JinaBertModel", layer_names=_GATED, further=_jina)
_JINA_FUSED = _JINA.but(layer_names={**_LAYER, "ffn_up": "intermediate.gate+up"})

ENCODERS: Mapping[str, Architecture] = {
    "bert": _BERT.but(variants=(("cls.output.weight", _RERANKER),)),
    "jina-bert-v2": _JINA_FUSED.but(variants=(("blk.0.ffn_gate.weight", _JINA),)),
    "modern-bert": Architecture(
        "ModernBertModel",
        "modernbert",
        {
            "attn_norm": "attn_norm",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.Wo",
            "ffn_norm": "mlp_norm",
            "ffn_up": "mlp.Wi",
            "ffn_down": "mlp.Wo",
        },
        _modern,
        around={
            "token_embd": "embeddings.tok_embeddings",
            "token_embd_norm": "embeddings.norm",
            "output_norm": "final_norm",
        },
        layers="layers",
        eps="layer_norm_eps",
        is_encoder=True,
    ),
    "nomic-bert": _BERT.but(
        name="NomicBertModel",
        model_type="nomic_bert",
        layer_names={**_GATED, "attn_qkv": "attention.self.query+key+value"},
        further=_nomic,
    ),
}
