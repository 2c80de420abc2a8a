"""The decoders that are read from GGUF files, by llama.cpp's names of their architectures."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from engine.checkpoint.gguf_architecture import ATTENTION, LLAMA, MLP, NORMS, Architecture, Stack
from engine.checkpoint.gguf_fields import Config, Fields
from engine.errors import CheckpointError

_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA = {**LLAMA, **_AFTER, "ffn_norm": "pre_feedforward_layernorm"}
_PHI3 = {**NORMS, **ATTENTION, "attn_qkv": "self_attn.qkv_proj", "ffn_down": MLP["ffn_down"]}
_PHI3 |= {"ffn_up": "mlp.gate_up_proj"}
_GLM4 = {**_PHI3, "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}


def _experts(module: str, gate: str, up: str, down: str, *, router: str = "gate") -> Mapping[str, str]:
    """Layers whose MLP is a mixture: experts that the model has one by one."""
    experts = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    named = {stored: f"{module}.experts.{{}}.{name}" for stored, name in experts.items()}
    return {**NORMS, **ATTENTION, "ffn_gate_inp": f"{module}.{router}", **named}


_MOE = _experts("mlp", "gate_proj", "up_proj", "down_proj")
_SHARED = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
_GRANITE_MOE = {
    **NORMS,
    **ATTENTION,
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_gate_exps": "block_sparse_moe.input_linear",
    "ffn_up_exps": "block_sparse_moe.input_linear",
    "ffn_down_exps": "block_sparse_moe.output_linear",
}
_GPT_OSS = {
    **NORMS,
    **ATTENTION,
    "post_attention_norm": NORMS["ffn_norm"],
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
    "ffn_gate_exps.bias": "mlp.experts.gate_up_proj_bias",
    "ffn_up_exps.bias": "mlp.experts.gate_up_proj_bias",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}


def _qwen2(fields: Fields, config: Config) -> Config:
    return {"use_sliding_window": False}


def _mixture(fields: Fields, config: Config) -> Config:
    size = fields.integer("expert_feed_forward_length", config["intermediate_size"])
    num_experts = _num_experts(fields)
    return {
        "num_experts": num_experts,
        "num_local_experts": num_experts,
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "moe_intermediate_size": size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "sliding_window": None,
    }


def _num_experts(fields: Fields) -> int:
    """Raises CheckpointError if the tensors have another number of them."""
    num_experts, tensors = fields.integer("expert_count"), fields.file.tensors
    stored = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("_exps.weight")}
    if stored - {num_experts}:
        raise CheckpointError(
            f"{fields.file.path}: expert_count is {num_experts}, but there are tensors for "
            f"{' and '.join(map(str, sorted(stored)))} experts."
        )
    return num_experts


def _qwen3_moe(fields: Fields, config: Config) -> Config:
    """llama.cpp always makes the chosen experts' weights add up to 1."""
    return {**_qwen2(fields, config), **_mixture(fields, config), "norm_topk_prob": True}


def _qwen2_moe(fields: Fields, config: Config) -> Config:
    shared = fields.integer("expert_shared_feed_forward_length", config["intermediate_size"])
    own = {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}
    return {**_qwen2(fields, config), **_mixture(fields, config), **own}


def _olmoe(fields: Fields, config: Config) -> Config:
    mixture = _mixture(fields, config)
    size = mixture["moe_intermediate_size"]
    return {**mixture, "norm_topk_prob": False, "intermediate_size": size, "clip_qkv": _clamp(fields)}


def _clamp(fields: Fields) -> float | None:
    return fields.number("attention.clamp_kqv") if fields.has("attention.clamp_kqv") else None


def _olmo(fields: Fields, config: Config) -> Config:
    return {"clip_qkv": _clamp(fields)}


def _window(fields: Fields, config: Config, pattern: int = 4) -> Config:
    """One layer of `pattern` sees all, unless the file says which do."""
    found = fields.optional("attention.sliding_window_pattern")
    num_layers = config["num_hidden_layers"]
    if isinstance(found, list | array) and len(found) == num_layers:
        slides = [bool(value) for value in found]
    else:
        every = found if isinstance(found, int) and found > 1 else pattern
        slides = [bool((layer + 1) % every) for layer in range(num_layers)]
    kinds = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return {"sliding_window": fields.integer("attention.sliding_window"), "layer_types": kinds}


def _gemma(fields: Fields, config: Config) -> Config:
    return {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}


def _gemma2(fields: Fields, config: Config) -> Config:
    """`query_pre_attn_scalar` isn't in the file: it's the head's size but in a family's largest model."""
    largest = {"gemma2": 46, "gemma3": 62}[config["model_type"].removesuffix("_text")]
    per_head = config["hidden_size"] // config["num_attention_heads"]
    scalar = per_head if config["num_hidden_layers"] == largest else config["head_dim"]
    pattern = 6 if config["model_type"] == "gemma3_text" else 2  # every sixth, or second, layer sees all
    layers = range(1, config["num_hidden_layers"] + 1)
    return {
        "layer_types": ["sliding_attention" if layer % pattern else "full_attention" for layer in layers],
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": fields.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": fields.optional("attn_logit_softcapping"),
        "final_logit_softcapping": fields.optional("final_logit_softcapping"),
    }


def _gemma3(fields: Fields, config: Config) -> Config:
    local = fields.number("rope.freq_base_swa", 10_000.0)
    return {**_gemma2(fields, config), "rope_local_base_freq": local}


def _gemma_embedding(fields: Fields, config: Config) -> Config:
    return {**_gemma3(fields, config), "use_bidirectional_attention": True}


def _phi3(fields: Fields, config: Config) -> Config:
    return {"sliding_window": fields.optional("attention.sliding_window") or None}


def _granite(fields: Fields, config: Config) -> Config:
    return {
        "attention_multiplier": fields.number("attention.scale", 1.0),
        "embedding_multiplier": fields.number("embedding_scale", 1.0),
        "residual_multiplier": fields.number("residual_scale", 1.0),
        "logits_scaling": fields.number("logit_scale", 1.0),
    }


def _granite_moe(fields: Fields, config: Config) -> Config:
    return {**_granite(fields, config), **_mixture(fields, config)}


def _cohere(fields: Fields, config: Config) -> Config:
    has_norm = "blk.0.attn_q_norm.weight" in fields.file.tensors
    return {"logit_scale": fields.number("logit_scale", 1.0), "use_qk_norm": has_norm}


def _cohere2(fields: Fields, config: Config) -> Config:
    return {**_cohere(fields, config), **_window(fields, config)}


def _starcoder2(fields: Fields, config: Config) -> Config:
    """The file lacks its window, which llama.cpp doesn't use."""
    has_bias = "blk.0.ffn_up.bias" in fields.file.tensors
    return {"use_bias": has_bias, "hidden_act": "gelu_pytorch_tanh", "sliding_window": None}


def _nemotron(fields: Fields, config: Config) -> Config:
    return {"hidden_act": "relu2"}


def _exaone4(fields: Fields, config: Config) -> Config:
    if not fields.has("attention.sliding_window"):
        num_layers = config["num_hidden_layers"]
        return {"sliding_window": None, "layer_types": ["full_attention"] * num_layers}
    return _window(fields, config)


def _seed_oss(fields: Fields, config: Config) -> Config:
    return {"attention_out_bias": "blk.0.attn_output.bias" in fields.file.tensors}


def _gpt_oss(fields: Fields, config: Config) -> Config:
    scaling = config["rope_scaling"]
    if scaling is not None and scaling["rope_type"] == "yarn":
        scaling = {**scaling, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    size = fields.integer("expert_feed_forward_length", config["intermediate_size"])
    window = _window(fields, config, 2)
    return {**_mixture(fields, config), **window, "intermediate_size": size, "rope_scaling": scaling}


_MIXTRAL = Architecture(
    "MixtralForCausalLM",
    "mixtral",
    _experts("block_sparse_moe", "w1", "w3", "w2"),
    _mixture,
    permuted=True,
)
_OLMO2_LAYERS = {**ATTENTION, **MLP, **_AFTER}
_GEMMA3 = Architecture("Gemma3ForCausalLM", "gemma3_text", _GEMMA, _gemma3, norms_plus_one=True)
_STARCODER2_LAYERS = {**NORMS, **ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_HUNYUAN = {**LLAMA, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}

DECODERS: Mapping[str, Architecture] = {
    "arcee": Architecture(
        "ArceeForCausalLM", "arcee", further=lambda fields, config: {"hidden_act": "relu2"}, permuted=True
    ),
    "cohere2": Architecture("Cohere2ForCausalLM", "cohere2", further=_cohere2, eps="layer_norm_eps"),
    "command-r": Architecture("CohereForCausalLM", "cohere", further=_cohere, eps="layer_norm_eps"),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", "ernie4_5"),
    "exaone4": Architecture("Exaone4ForCausalLM", "exaone4", _OLMO2_LAYERS, _exaone4),
    "gemma": Architecture("GemmaForCausalLM", "gemma", further=_gemma, norms_plus_one=True),
    "gemma-embedding": _GEMMA3.but(name="Gemma3TextModel", further=_gemma_embedding),
    "gemma2": Architecture("Gemma2ForCausalLM", "gemma2", _GEMMA, _gemma2, norms_plus_one=True),
    "gemma3": _GEMMA3,
    "glm4": Architecture("Glm4ForCausalLM", "glm4", _GLM4),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        "gpt_oss",
        _GPT_OSS,
        _gpt_oss,
        stacks={
            "experts.gate_up_proj": Stack(interleaved=True, transposed=True),
            "experts.gate_up_proj_bias": Stack(interleaved=True),
            "experts.down_proj": Stack(transposed=True),
            "experts.down_proj_bias": Stack(),
        },
    ),
    "granite": Architecture("GraniteForCausalLM", "granite", further=_granite, permuted=True),
    "granitemoe": Architecture(
        "GraniteMoeForCausalLM",
        "granitemoe",
        _GRANITE_MOE,
        _granite_moe,
        permuted=True,
        stacks={"input_linear.weight": Stack(), "output_linear.weight": Stack()},
    ),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", _HUNYUAN),
    "llama": Architecture("LlamaForCausalLM", "llama", permuted=True, variants=(("expert_count", _MIXTRAL),)),
    "nemotron": Architecture(
        "NemotronForCausalLM", "nemotron", further=_nemotron, norms_plus_one=True, eps="norm_eps"
    ),
    "olmo": Architecture("OlmoForCausalLM", "olmo", further=_olmo, permuted=True, eps=""),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        "olmo2",
        _OLMO2_LAYERS,
        variants=(
            ("attention.sliding_window", Architecture("Olmo3ForCausalLM", "olmo3", _OLMO2_LAYERS, _window)),
        ),
    ),
    "olmoe": Architecture("OlmoeForCausalLM", "olmoe", _MOE, _olmoe),
    "phi3": Architecture("Phi3ForCausalLM", "phi3", _PHI3, _phi3),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", further=_qwen2),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", "qwen2_moe", {**_MOE, **_SHARED}, _qwen2_moe),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", further=_qwen2),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", "qwen3_moe", _MOE, _qwen3_moe),
    "seed_oss": Architecture(
        "SeedOssForCausalLM", "seed_oss", {**LLAMA, "post_attention_norm": NORMS["ffn_norm"]}, _seed_oss
    ),
    "smollm3": Architecture("SmolLM3ForCausalLM", "smollm3", permuted=True),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM", "starcoder2", _STARCODER2_LAYERS, _starcoder2, eps="norm_epsilon"
    ),
}
