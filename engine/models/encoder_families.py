"""The families of encoders: what their config.json calls things, and how they name their tensors.

The models' own names are BERT's. A name with plus signs stands for several tensors in one, row under row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedModel
from engine.models.encoder_config import EncoderActivation, EncoderFamily, Positions, Settings
from engine.models.pooling_type import PoolingType

_QKV = "attention.self.query+key+value."
_BERT_HEAD = (
    (r"^pooler\.dense\.", "classifier.dense."),
    (r"^classifier\.(weight|bias)$", r"classifier.out_proj.\1"),
)


def _rope(settings: Settings, kinds: tuple[str, ...] = ("default",)) -> Mapping[str, Any]:
    """`rope_parameters` or the older `rope_scaling`, checked for its kind."""
    found: Mapping[str, Any] = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in kinds:
        raise UnsupportedModel(f"RoPE scaling {kind!r} isn't supported here; {', '.join(kinds)} is.")
    return found


def _rotary(settings: Settings) -> Settings:
    theta = _rope(settings).get("rope_theta", settings.get("rope_theta"))
    return {**settings, "rope_theta": theta, "position_embedding_type": Positions.ROTARY}


def _translate_nomic(settings: Settings) -> Settings:
    wanted = {
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "prenorm": False,
        "use_rms_norm": False,
        "moe_every_n_layers": 0,
    }
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise UnsupportedModel(f"Nomic BERT with {key} {settings[key]!r} isn't supported; {value!r} is.")
    activation = settings.get("activation_function", "swiglu")
    gates = {"swiglu": "silu", "geglu": "gelu"}
    return _rotary(
        {
            **settings,
            "is_gated": activation in gates,
            "hidden_act": settings.get("hidden_act", gates.get(activation, activation)),
            "intermediate_size": settings.get("intermediate_size", 4 * settings.get("hidden_size", 0)),
            "max_position_embeddings": settings.get(
                "max_trained_positions", settings.get("max_position_embeddings")
            ),
        }
    )


def _translate_gte(settings: Settings) -> Settings:
    if settings.get("logn_attention_scale") or settings.get("layer_norm_type", "layer_norm") != "layer_norm":
        raise UnsupportedModel("GTE with logn_attention_scale or layer_norm_type 'rms_norm' isn't supported.")
    if settings.get("position_embedding_type", "rope") != "rope":
        raise UnsupportedModel(
            f"GTE with positions of kind {settings['position_embedding_type']!r} isn't supported."
        )
    rope = _rope(settings, ("default", "ntk"))
    theta, scale = rope.get("rope_theta", settings.get("rope_theta")), 1.0
    if rope.get("type", rope.get("rope_type")) == "ntk":
        if rope.get("mixed_b") is not None:
            raise UnsupportedModel("RoPE scaling 'ntk' with mixed_b isn't supported.")
        head_dim = settings["hidden_size"] // settings["num_attention_heads"]
        theta, scale = theta * rope["factor"], rope["factor"] ** (-2 / head_dim)
    kind = {"position_embedding_type": Positions.ROTARY}
    return {**settings, "rope_theta": theta, "position_scale": scale, **kind}


def _translate_jina_bert(settings: Settings) -> Settings:
    activations = {"geglu": "gelu", "reglu": "relu"}
    form = settings.get("feed_forward_type", "original")
    has_qk_norm = "qk-post-norm" in f"{settings.get('auto_map')}{settings.get('_name_or_path')}"
    return {
        **settings,
        "is_gated": form in activations,
        "up_bias": form not in activations and not has_qk_norm,
        "hidden_act": activations.get(form, settings.get("hidden_act", "gelu")),
        "has_qk_norm": has_qk_norm,
        "pooling": PoolingType.MEAN if settings.get("emb_pooler") == "mean" else PoolingType.CLS,
    }


def _translate_modernbert(settings: Settings) -> Settings:
    num_layers = settings.get("num_hidden_layers", 0)
    every = settings.get("global_attn_every_n_layers", 3)
    kinds = settings.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in range(num_layers)
    ]
    window = settings.get("local_attention", 128) // 2
    parameters = settings.get("rope_parameters") or {}
    thetas = {
        "full_attention": settings["global_rope_theta"],
        "sliding_attention": settings["local_rope_theta"],
    }
    for kind in thetas:
        own = _rope({"rope_parameters": parameters.get(kind), "rope_scaling": settings.get("rope_scaling")})
        thetas[kind] = own.get("rope_theta", thetas[kind])
    if unknown := sorted(set(kinds) - set(thetas)):
        raise UnsupportedModel(f"Layers of kind {unknown[0]!r} aren't supported; {', '.join(thetas)} are.")
    bias = bool(settings.get("mlp_bias", False))
    return {
        **settings,
        "windows": [window if kind == "sliding_attention" else None for kind in kinds],
        "rope_thetas": [thetas[kind] for kind in kinds],
        "position_embedding_type": Positions.ROTARY,
        "up_bias": bias,
        "down_bias": bias,
    }


def _translate_mpnet(settings: Settings) -> Settings:
    if settings.get("relative_attention_num_buckets", 32) != 32:
        raise UnsupportedModel("relative_attention_num_buckets other than 32 isn't supported.")
    # Its positions start behind row 1 whatever the padding token.
    return {**settings, "pad_token_id": 1, "type_vocab_size": 0}


def _translate_distilbert(settings: Settings) -> Settings:
    return {**settings, "type_vocab_size": 0}


BERT = EncoderFamily(names=((r"^bert\.", ""), *_BERT_HEAD))
ROBERTA = EncoderFamily(pads_positions=True, names=((r"^roberta\.", ""),))
ELECTRA = EncoderFamily(head_activation=EncoderActivation.GELU, names=((r"^electra\.", ""),))
MPNET = EncoderFamily(
    positions=Positions.BUCKETS,
    pads_positions=True,
    translate=_translate_mpnet,
    names=(
        (r"^mpnet\.", ""),
        (r"\.attention\.attn\.q\.", ".attention.self.query."),
        (r"\.attention\.attn\.k\.", ".attention.self.key."),
        (r"\.attention\.attn\.v\.", ".attention.self.value."),
        (r"\.attention\.attn\.o\.", ".attention.output.dense."),
        (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
    ),
)
DISTILBERT = EncoderFamily(
    head_activation=EncoderActivation.RELU,
    keys={
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_act": "activation",
    },
    translate=_translate_distilbert,
    names=(
        (r"^distilbert\.", ""),
        (r"^transformer\.", "encoder."),
        (r"\.attention\.q_lin\.", ".attention.self.query."),
        (r"\.attention\.k_lin\.", ".attention.self.key."),
        (r"\.attention\.v_lin\.", ".attention.self.value."),
        (r"\.attention\.out_lin\.", ".attention.output.dense."),
        (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.lin1\.", ".intermediate.dense."),
        (r"\.ffn\.lin2\.", ".output.dense."),
        (r"\.output_layer_norm\.", ".output.LayerNorm."),
        (r"^classifier\.", "classifier.out_proj."),
        (r"^pre_classifier\.", "classifier.dense."),
    ),
)
_FLAT_LAYERS = (  # of Nomic's and Jina's own code, and as transformers converts them and GTE
    (r"^emb_ln\.", "embeddings.LayerNorm."),
    (r"^(encoder\.)?layers\.", "encoder.layer."),
    (r"\.(attn|mixer)\.Wqkv\.", f".{_QKV}"),
    (r"\.(attn|mixer)\.out_proj\.", ".attention.output.dense."),
    (r"\.self_attn\.q_proj\.", ".attention.self.query."),
    (r"\.self_attn\.k_proj\.", ".attention.self.key."),
    (r"\.self_attn\.v_proj\.", ".attention.self.value."),
    (r"\.self_attn\.o_proj\.", ".attention.output.dense."),
    (r"\.(norm1|post_attention_layernorm)\.", ".attention.output.LayerNorm."),
    (r"\.(norm2|post_mlp_layernorm)\.", ".output.LayerNorm."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.(fc11|up_proj)\.", ".intermediate.up."),
    (r"\.mlp\.(fc12|gate_proj)\.", ".intermediate.gate."),
    (r"\.mlp\.(fc2|down_proj)\.", ".output.dense."),
)
NOMIC = EncoderFamily(
    positions=Positions.ROTARY,
    keys={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "layer_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "n_positions",
        "rope_theta": "rotary_emb_base",
        "attention_bias": "qkv_proj_bias",
        "up_bias": "mlp_fc1_bias",
        "down_bias": "mlp_fc2_bias",
    },
    defaults={"rope_theta": 1000.0, "attention_bias": False, "up_bias": False, "down_bias": False},
    translate=_translate_nomic,
    names=((r"^(nomic_bert|bert)\.", ""), *_FLAT_LAYERS, *_BERT_HEAD),
)
GTE = EncoderFamily(
    positions=Positions.ROTARY,
    defaults={"rope_theta": 160_000.0, "is_gated": True, "up_bias": False, "type_vocab_size": 1},
    translate=_translate_gte,
    names=(
        (r"^(new|gte)\.", ""),
        (r"\.attention\.qkv_proj\.", f".{_QKV}"),
        (r"\.attention\.(q_proj|k_proj|v_proj|o_proj)\.", r".self_attn.\1."),
        (r"\.mlp\.up_gate_proj\.", ".intermediate.up+gate."),
        (r"\.attn_ln\.", ".attention.output.LayerNorm."),
        (r"\.mlp_ln\.", ".output.LayerNorm."),
        *_FLAT_LAYERS,
        *_BERT_HEAD,
    ),
)
JINA_V3 = EncoderFamily(
    positions=Positions.ROTARY,
    defaults={"rope_theta": 20_000.0, "type_vocab_size": 1},
    translate=_rotary,
    names=((r"^roberta\.", ""), *_FLAT_LAYERS),
)
JINA_BERT = EncoderFamily(
    positions=Positions.ALIBI,
    translate=_translate_jina_bert,
    names=(
        (r"^bert\.", ""),
        (r"\.mlp\.gated_layers\.", ".intermediate.gate+up."),
        (r"\.mlp\.up_gated_layer\.", ".intermediate.up+gate."),
        (r"\.mlp\.up_layer\.", ".intermediate.dense."),
        (r"\.mlp\.(wo|down_layer)\.", ".output.dense."),
        (r"\.layer_norm_1\.", ".attention.output.LayerNorm."),
        (r"\.(mlp\.layernorm|layer_norm_2)\.", ".output.LayerNorm."),
        *_BERT_HEAD,
    ),
)
MODERNBERT = EncoderFamily(
    positions=Positions.ROTARY,
    head_activation=EncoderActivation.GELU,
    keys={
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "head_activation": "classifier_activation",
        "head_bias": "classifier_bias",
    },
    defaults={
        "layer_norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "head_bias": False,
        "is_gated": True,
        "type_vocab_size": 0,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
    },
    translate=_translate_modernbert,
    names=(
        (r"^model\.", ""),
        (r"\.attn\.Wqkv\.", ".attn.query+key+value."),
        (r"\.mlp\.Wi\.", ".mlp.gate+up."),
        (r"^classifier\.", "classifier.out_proj."),
        (r"^head\.", "classifier."),
    ),
)
