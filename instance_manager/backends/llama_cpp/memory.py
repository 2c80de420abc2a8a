"""How much memory a llama-server will take for a model, from its file's header and its flags. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instance_manager.backends.llama_cpp.params import CACHE_BYTES, slots_of
from instance_manager.gguf.header import GgufHeader
from instance_manager.memory.checkpoint_size import Estimate, Overhead
from instance_manager.memory.kv_cache_size import Machine, quantity

_MIB = 1 << 20
_DEFAULT_SLOTS = 4
_DEFAULT_UBATCH = 512
_FIT_CONTEXT = 4096  # to which it may shorten a context that nobody set
_FIT_MARGIN_BYTES = 1024 * _MIB  # that it leaves free on each GPU
_FLOAT_BYTES = 4
# Of each so many layers one attends to the whole context, the others to a window.
_WINDOW_PATTERNS = {
    "gemma2": 2,
    "gpt-oss": 2,
    "cohere2": 4,
    "olmo2": 4,
    "exaone4": 4,
    "llama4": 4,
    "smallthinker": 4,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma-embedding": 6,
}


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Bytes per token of the KV cache's layers."""

    whole: float  # of layers that attend to the whole context, together
    windowed: float  # of those that attend to a window
    window: int = 0  # tokens


def estimate(
    params: Mapping[str, Any],
    header: GgufHeader,
    weights_bytes: int,
    machine: Machine,
    overhead: Overhead,
) -> Estimate:
    """Of an instance that has never run. What doesn't fit into GPUs, llama-server computes on the CPU."""
    steps = compute_bytes(params, header)
    share = offloaded_share(params, header) if machine.num_gpus else 0.0
    if not share:
        cache = kv_cache_bytes(params, header, context_tokens(params, header))
        return Estimate(
            weights_bytes=weights_bytes,
            kv_cache_bytes=cache,
            host_overhead_bytes=overhead.host_bytes,
            gpu_overhead_bytes=0,
            num_gpus=0,
            step_bytes=steps,
        )
    fixed = (overhead.gpu_bytes + steps) * machine.num_gpus
    room = machine.gpu_total_bytes * machine.num_gpus - fixed - _FIT_MARGIN_BYTES * machine.num_gpus
    on_gpus = min(int(weights_bytes * share), max(room, 0))
    cache = int(fitted_cache_bytes(params, header, room - on_gpus) * share)
    return Estimate(
        weights_bytes=on_gpus,
        kv_cache_bytes=cache,
        host_overhead_bytes=overhead.host_bytes + weights_bytes - on_gpus,
        gpu_overhead_bytes=overhead.gpu_bytes + steps,
        num_gpus=machine.num_gpus,
    )


def kv_cache_bytes(params: Mapping[str, Any], header: GgufHeader, num_tokens: int) -> int:
    """Of `num_tokens` in all slots together; 0 for an unknown architecture and for an encoder."""
    layers = layer_cache(params, header)
    in_window = min(num_tokens, (layers.window + ubatch_of(params)) * (slots_of(params) or _DEFAULT_SLOTS))
    if params.get("swa_full"):
        in_window = num_tokens
    return int(layers.whole * num_tokens + layers.windowed * in_window)


def context_tokens(params: Mapping[str, Any], header: GgufHeader) -> int:
    """Of all slots together, if memory is no limit; 0 = unknown."""
    if (length := quantity(params.get("max_model_len"))) is not None:
        return length * (slots_of(params) or 1)
    given = quantity(params.get("ctx_size", params.get("c")))
    return given or _number(header, "context_length")


def is_context_set(params: Mapping[str, Any]) -> bool:
    return any(quantity(params.get(name)) for name in ("max_model_len", "ctx_size", "c"))


def fitted_cache_bytes(params: Mapping[str, Any], header: GgufHeader, free_bytes: int) -> int:
    """The KV cache on GPUs of which `free_bytes` are left beside the weights: it shortens a context that
    nobody set until it fits."""
    wanted = kv_cache_bytes(params, header, context_tokens(params, header))
    if is_context_set(params) or params.get("fit") in ("off", False):
        return wanted
    least = kv_cache_bytes(params, header, min(_FIT_CONTEXT, context_tokens(params, header)))
    return max(min(wanted, free_bytes), least)


def compute_bytes(params: Mapping[str, Any], header: GgufHeader) -> int:
    """Of the largest step: rows of the hidden size and of the MLP's, and logits of those that are sampled."""
    tokens = ubatch_of(params)
    vocab = header.vocabulary_size or 0
    row = 4 * _number(header, "embedding_length") + 3 * _number(header, "feed_forward_length")
    return tokens * row * _FLOAT_BYTES + min(tokens, _DEFAULT_UBATCH) * vocab * _FLOAT_BYTES


def offloaded_share(params: Mapping[str, Any], header: GgufHeader) -> float:
    """The share of the layers that its flags put on GPUs; 1 if they leave it to llama-server."""
    names = ("n_gpu_layers", "gpu_layers", "ngl")
    given = next((params[name] for name in names if name in params), "auto")
    if params.get("device", params.get("dev")) == "none":
        return 0.0
    if str(given).lstrip("-").isdigit() and int(given) >= 0:
        layers = _number(header, "block_count") + 1  # the head counts as one
        return min(1.0, int(given) / layers)
    return 1.0


def layer_cache(params: Mapping[str, Any], header: GgufHeader) -> LayerCache:
    """From the sizes of the heads; all 0 where the header lacks them."""
    layers, heads = _number(header, "block_count"), _number(header, "attention.head_count")
    if not layers or _is_encoder(header):
        return LayerCache(0, 0)
    row = _row_bytes(params, header, heads)
    each = [kv_heads * row for kv_heads in _kv_heads(header, layers, heads)]
    window, pattern = _number(header, "attention.sliding_window"), _WINDOW_PATTERNS.get(header.architecture)
    if not window or pattern is None:
        return LayerCache(sum(each), 0)
    whole = sum(size for layer, size in enumerate(each) if layer % pattern == pattern - 1)
    return LayerCache(whole, sum(each) - whole, window)


def ubatch_of(params: Mapping[str, Any]) -> int:
    return quantity(params.get("ubatch_size", params.get("ub"))) or _DEFAULT_UBATCH


def _row_bytes(params: Mapping[str, Any], header: GgufHeader, heads: int) -> float:
    """Key and value of one head and token."""
    of_key = _type_bytes(params, "cache_type_k", "ctk")
    of_value = _type_bytes(params, "cache_type_v", "ctv")
    if latent := _number(header, "attention.kv_lora_rank"):  # one latent row for all heads, and no values
        return (latent + _number(header, "rope.dimension_count")) * of_key
    default = _number(header, "embedding_length") // heads if heads else 0
    key = _number(header, "attention.key_length") or default
    return key * of_key + (_number(header, "attention.value_length") or default) * of_value


def _kv_heads(header: GgufHeader, layers: int, heads: int) -> Sequence[int]:
    """Of each layer; 0 for one without attention."""
    if header.number("attention.kv_lora_rank"):
        return [1] * layers
    if of_layers := header.numbers("attention.head_count_kv"):
        return of_layers
    every, given = _number(header, "full_attention_interval") or 1, _number(header, "attention.head_count_kv")
    return [(given or heads) if layer % every == every - 1 else 0 for layer in range(layers)]


def _type_bytes(params: Mapping[str, Any], *names: str) -> float:
    given = next((params[name] for name in names if name in params), None)
    if given is None:
        given = params.get("kv_cache_dtype")
    return CACHE_BYTES.get(str(given), 2.0)


def _is_encoder(header: GgufHeader) -> bool:
    return header.values.get(f"{header.architecture}.attention.causal") is False


def _number(header: GgufHeader, key: str) -> int:
    """Of one for each layer the largest; 0 if it is missing."""
    return header.largest(key) or 0
