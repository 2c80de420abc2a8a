"""What a GGUF file tells about its model: config.json's content, and Hugging Face's names of its tensors.

llama.cpp writes a model's numbers as metadata under names of its own, and changes some tensors: it permutes
the rows of Llama's queries and keys, and adds one to Gemma's norms. Knows nothing of torch.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.checkpoint.gguf_file import GGUFFile
from engine.checkpoint.raw_config import check_depth
from engine.errors import CheckpointError, UnsupportedModel

_TOKENS = "tokenizer.ggml.tokens"
_FREQUENCIES = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_OF_ROPE = frozenset({_FREQUENCIES, _LONG, _SHORT})  # become configuration


class Fields:
    """Typed access to a file's metadata; errors name the file and the key."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._prefix = f"{self.text('general.architecture')}."

    def text(self, key: str) -> str:
        value = self.file.metadata.get(key)
        if not isinstance(value, str):
            raise self._error(key, value, "text")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer, or one for each layer if they are all the same."""
        value = self._value(key, default)
        if isinstance(value, array | list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._error(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self._error(key, value, "a positive number")
        return float(f"{value:.7g}")  # the digits of a float32: 1e-06 and not 9.9999999e-07

    def optional(self, key: str) -> Any:
        return self.file.metadata.get(f"{self._prefix}{key}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.optional(key)
        return default if value is None else value

    def _error(self, key: str, value: Any, kind: str) -> CheckpointError:
        shown = "an array" if isinstance(value, array | list) else repr(value)
        return CheckpointError(f"{self.file.path}: {key} is {shown}; it must be {kind}.")


Config = dict[str, Any]


def _nothing(fields: Fields, config: Config) -> Config:
    return {}


def _qwen2(fields: Fields, config: Config) -> Config:
    return {"use_sliding_window": False}


def _gemma(fields: Fields, config: Config) -> Config:
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
    return {**_gemma(fields, config), "rope_local_base_freq": local}


def _phi3(fields: Fields, config: Config) -> Config:
    window = fields.optional("attention.sliding_window")
    return {"sliding_window": window or None}


_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES = {
    **_LAYER_NAMES,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_NAMES = {**_LAYER_NAMES, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


@dataclass(frozen=True, slots=True)
class Architecture:
    name: str  # Hugging Face's
    model_type: str
    layer_names: Mapping[str, str] = field(default_factory=lambda: _LAYER_NAMES)
    further: Callable[[Fields, Config], Config] = _nothing
    permuted: bool = False  # rows of queries and keys
    norms_plus_one: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "gemma2": Architecture("Gemma2ForCausalLM", "gemma2", _GEMMA_NAMES, _gemma, norms_plus_one=True),
    "gemma3": Architecture("Gemma3ForCausalLM", "gemma3_text", _GEMMA_NAMES, _gemma3, norms_plus_one=True),
    "llama": Architecture("LlamaForCausalLM", "llama", permuted=True),
    "phi3": Architecture("Phi3ForCausalLM", "phi3", _PHI3_NAMES, _phi3),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", further=_qwen2),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", further=_qwen2),
}


def architecture_of(file: GGUFFile) -> Architecture:
    """Raises UnsupportedModel, CheckpointError."""
    name = Fields(file).text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path} has a model of architecture {name!r}; of GGUF files, the engine runs "
            f"{', '.join(ARCHITECTURES)}: llama.cpp may run it (`engine: command` with llama-server).",
            advice=None,
        )
    return ARCHITECTURES[name]


def config_of(file: GGUFFile) -> Config:
    """A config.json equivalent. Raises UnsupportedModel, CheckpointError."""
    fields, architecture = Fields(file), architecture_of(file)
    num_heads, hidden_size = fields.integer("attention.head_count"), fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", max(1, hidden_size // num_heads))
    num_layers = fields.integer("block_count")
    check_depth(file.path, "block_count", num_layers)
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} has no tensor token_embd.weight.")
    config: Config = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "hidden_size": hidden_size,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": fields.integer("context_length"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(fields),
        "partial_rotary_factor": _rotary_factor(fields, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "torch_dtype": _dtype(file),
        **{
            f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        },
    }
    return config | architecture.further(fields, config)


def _rotary_factor(fields: Fields, head_dim: int) -> float:
    return fields.integer("rope.dimension_count", head_dim) / head_dim


def _dtype(file: GGUFFile) -> str:
    """Of files whose matrices are neither quantised nor in bfloat16, their own; else bfloat16."""
    kinds = {tensor.type_name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {frozenset({"F32"}): "float32", frozenset({"F16"}): "float16"}.get(frozenset(kinds), "bfloat16")


def _rope_scaling(fields: Fields) -> Config | None:
    tensors = fields.file.tensors
    if _LONG in tensors:
        return {
            "rope_type": "longrope",
            "long_factor": _floats(fields.file, _LONG),
            "short_factor": _floats(fields.file, _SHORT),
            "original_max_position_embeddings": fields.integer("rope.scaling.original_context_length"),
        }
    if _FREQUENCIES in tensors:
        return _llama3(fields, _floats(fields.file, _FREQUENCIES))
    kind = fields.optional("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": fields.number("rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": fields.number("rope.scaling.factor"),
            "original_max_position_embeddings": fields.integer("rope.scaling.original_context_length"),
        }
    raise UnsupportedModel(f"{fields.file.path}: rope.scaling.type {kind!r} isn't supported.")


def _llama3(fields: Fields, factors: Sequence[float]) -> Config | None:
    """Llama 3's scaling from what it makes of every frequency: all of its models differ in `factor` alone."""
    if all(factor == 1.0 for factor in factors):
        return None
    scaling: Config = {
        "rope_type": "llama3",
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta, pairs = fields.number("rope.freq_base", 10_000.0), len(factors)
    for at, factor in enumerate(factors):
        turns = 8192 / (2 * math.pi * theta ** (at / pairs))  # in the original context
        smooth = min(1.0, max(0.0, (turns - 1.0) / 3.0))
        if not math.isclose(1 / ((1 - smooth) / scaling["factor"] + smooth), factor, rel_tol=1e-3):
            raise UnsupportedModel(f"{fields.file.path}: {_FREQUENCIES} isn't of Llama 3's kind.")
    return scaling


def _floats(file: GGUFFile, name: str) -> list[float]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type_name != "F32":
        raise CheckpointError(f"{file.path} has no tensor {name} of type F32.")
    values = array("f")
    with file.path.open("rb") as stream:
        stream.seek(tensor.start)
        values.frombytes(stream.read(tensor.num_bytes))
    return values.tolist()


_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def hugging_face_name(architecture: Architecture, name: str) -> str | None:
    """A tensor's name in the model; None for one that is part of the configuration.

    Raises UnsupportedModel for a tensor that the architecture doesn't have here.
    """
    if name in _OF_ROPE:
        return None
    stem, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if match := _LAYER.fullmatch(stem):
            if match[2] in architecture.layer_names:
                return f"model.layers.{match[1]}.{architecture.layer_names[match[2]]}.{kind}"
        elif stem in _NAMES:
            return f"{_NAMES[stem]}.{kind}"
    raise UnsupportedModel(
        f"The GGUF file has a tensor {name!r}, which {architecture.name} doesn't have: llama.cpp may run it "
        "(`engine: command` with llama-server).",
        advice=None,
    )
