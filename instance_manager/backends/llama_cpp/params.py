"""Berth's parameters as llama-server's flags: names that all engines share, and Berth's defaults. Pure.

Its own flags are taken as they are; `max_model_len`, `served_model_name` and the like have other names there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instance_manager.errors import InvalidSpec
from instance_manager.gguf.header import GgufHeader
from instance_manager.memory.kv_cache_size import quantity

# What Berth decides, with the reason where it isn't obvious.
OWNED = frozenset(
    {
        *("model", "m", "model_url", "mu", "hf_repo", "hf", "hfr", "hf_file", "hff", "docker_repo", "dr"),
        *("models_dir", "models_preset", "models_max", "models_autoload", "no_models_autoload"),
        *("host", "port", "reuse_port", "api_key", "api_key_file", "api_prefix"),
        *("ssl_key_file", "ssl_cert_file", "log_file", "log_disable"),
        *("help", "h", "usage", "version", "cache_list", "cl", "list_devices", "completion_bash"),
    }
)
_ADAPTERS = "llama-server adds an adapter to the model for all requests: name GGUF adapters in `lora`"
_INSTEAD = {
    "alias": "name it `served_model_name`",
    "a": "name it `served_model_name`",
    "sleep_idle_seconds": "Berth alone decides when a model leaves memory, by `timeout`",
    "hf_token": "set HF_TOKEN in the environment, where other users of this machine don't see it",
    "hft": "set HF_TOKEN in the environment, where other users of this machine don't see it",
    "lora_modules": _ADAPTERS,
    "enable_lora": _ADAPTERS,
    "enable_sleep_mode": "llama-server can't be put to sleep; Berth stops it instead",
    "kv_cache_memory_bytes": "the KV cache has the size that `max_model_len` and `max_num_seqs` need",
}
# What other engines need to be told, and a GGUF file says.
_OF_FILES = ("dtype", "trust_remote_code", "gpu_memory_utilization", "revision")
_PLACED_BY_BERTH = ("tensor_parallel_size", "tp")  # the number of GPUs, all of which it uses
# Types of the KV cache, with the bytes of a value.
CACHE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip
_CACHE_TYPES = {"float16": "f16", "half": "f16", "bfloat16": "bf16", "float32": "f32", "float": "f32"}
_TEMPLATE_CHARACTERS = frozenset("{}\n")
_POOLING_TASKS = ("embed", "embedding", "token_embed", "reward")
_SCORING_TASKS = ("classify", "score", "token_classify")
_MAX_UBATCH = 2048


# Where the program takes them: counters that show whether it makes progress, and threads enough for health
# probes beside requests, each of which holds one.
DEFAULTS: Mapping[str, Any] = {"metrics": True, "threads_http": 64}


def refuse_unusable(params: Mapping[str, Any]) -> None:
    """Raise InvalidSpec for what Berth decides in another way, and for what llama-server can't do."""
    for name, value in params.items():
        if (instead := _INSTEAD.get(name)) is not None and value not in (False, None, []):
            raise InvalidSpec(
                f"params.{name} can't be set for engine 'llama': {instead}", param=f"params.{name}"
            )


def translated(params: Mapping[str, Any], header: GgufHeader) -> dict[str, Any]:
    """Merged parameters by llama-server's names, without those that it has no use for. Raises InvalidSpec."""
    flags = {
        name: value
        for name, value in params.items()
        if name not in (*_COMMON, *_OF_FILES, *_PLACED_BY_BERTH, *_INSTEAD)
    }
    for name, translate in _COMMON.items():
        if name in params:
            flags = translate(params, params[name]) | flags
    return pooling_flags(params, header) | flags


def _both(params: Mapping[str, Any], name: str, *own: str) -> None:
    if (other := next((one for one in own if one in params), None)) is not None:
        message = f"params.{name} and params.{other} say the same; keep one"
        raise InvalidSpec(message, param=f"params.{other}")


def _length(params: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """Each slot has a context of its own: shared, it would break off all requests when they fill it."""
    _both(params, "max_model_len", "ctx_size", "c")
    slots = slots_of(params) or 1
    return {"ctx_size": _whole_number("max_model_len", value) * slots, "parallel": slots}


def _whole_number(name: str, value: Any) -> int:
    found = quantity(value)
    if found is None:
        message = f"params.{name} must be a whole number above 0, such as 4096 or 4k, not {value!r}"
        raise InvalidSpec(message, param=f"params.{name}")
    return found


def slots_of(params: Mapping[str, Any]) -> int | None:
    """Requests at once; None: llama-server chooses."""
    found = next((params[name] for name in ("max_num_seqs", "parallel", "np") if name in params), None)
    return quantity(found)


def _slots(params: Mapping[str, Any], value: Any) -> dict[str, Any]:
    _both(params, "max_num_seqs", "parallel", "np")
    return {"parallel": _whole_number("max_num_seqs", value)}


def _cache_type(params: Mapping[str, Any], value: Any) -> dict[str, Any]:
    if value == "auto":
        return {}
    own = _CACHE_TYPES.get(str(value), str(value))
    if own not in CACHE_BYTES:
        message = f"params.kv_cache_dtype={value!r}: must be one of {', '.join(CACHE_BYTES)}"
        raise InvalidSpec(message, param="params.kv_cache_dtype")
    return {"cache_type_k": own, "cache_type_v": own}


def _template(params: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """A file, a template, or the name of one that llama.cpp has."""
    is_file = isinstance(value, str) and not _TEMPLATE_CHARACTERS & set(value) and Path(value).is_file()
    return {"chat_template_file": value} if is_file else {"chat_template": value}


def _nothing(params: Mapping[str, Any], value: Any) -> dict[str, Any]:
    return {}


_COMMON: Mapping[str, Callable[[Mapping[str, Any], Any], dict[str, Any]]] = {
    "max_model_len": _length,
    "max_num_seqs": _slots,
    "kv_cache_dtype": _cache_type,
    "chat_template": _template,
    "served_model_name": _nothing,
    "runner": _nothing,  # with these, `pooling_flags` deals
    "convert": _nothing,
    "task": _nothing,
}


def pooling_flags(params: Mapping[str, Any], header: GgufHeader) -> dict[str, Any]:
    """What makes it embed or rank, where flags or the file ask for it; empty for a model that generates."""
    if pools_by_own_flags(params) or params.get("runner") == "generate" or params.get("task") == "generate":
        return {}
    wish = params.get("convert", params.get("task"))
    if wish in _SCORING_TASKS or (wish not in _POOLING_TASKS and header.pooling == "rank"):
        return {"reranking": True, **_whole_batches(header)}
    pools = header.pooling not in (None, "none")
    if wish in _POOLING_TASKS or params.get("runner") == "pooling" or pools:
        pooling = {} if pools or "pooling" in params else {"pooling": "last"}
        return {"embeddings": True, **pooling, **_whole_batches(header)}
    return {}


def pools_by_own_flags(params: Mapping[str, Any]) -> bool:
    return any(params.get(name) for name in ("embedding", "embeddings", "rerank", "reranking"))


def _whole_batches(header: GgufHeader) -> dict[str, Any]:
    """A text is embedded in one batch: one that is longer is refused."""
    tokens = min(header.number("context_length") or _MAX_UBATCH, _MAX_UBATCH)
    return {"batch_size": tokens, "ubatch_size": tokens}


def alias_of(params: Mapping[str, Any], model_name: str) -> str:
    """The name that it serves: the first of `served_model_name`, else the model's. Raises InvalidSpec."""
    value = params.get("served_model_name")
    if value is None:
        return re.sub(r"\s*,\s*", "_", model_name).strip()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        problem = "must be a name or a list of names"
    elif "," in names[0] or names[0] != names[0].strip():
        problem = "must not have commas, or spaces at an end: llama-server reads them as the end of a name"
    else:
        return str(names[0])
    raise InvalidSpec(f"params.served_model_name {problem}", param="params.served_model_name")
