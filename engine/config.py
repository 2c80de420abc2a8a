"""The engine's configuration: frozen, checked once, passed down; built by engine/launch/flags.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_DTYPES = ("auto", "float32", "bfloat16", "float16", "float", "half")
_PARSER = "a parser's name, or none; default: detected from the chat template"
_TOOL_CHOICE = "parse tool calls, which is the default; --no-enable-auto-tool-choice leaves them as text"
_LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


def flag(
    default: _T | Callable[[], _T],
    *names: str,
    kind: str | None = None,
    is_negated: bool = False,
    also: Mapping[str, str] | None = None,
    **options: Any,
) -> _T:
    """A field with a command-line flag: `names`, or the field's name with dashes. `options` are argparse's.

    `default`: a value, or a function that makes one. `kind`: how values are read (a key of READERS in
    engine/launch/flag_values.py), unless the field's type says it. `is_negated`: the flag turns the field
    off. `also`: further switches, with their help.
    """
    metadata = {"names": names, "kind": kind, "is_negated": is_negated, "also": also, "options": options}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The core's configuration: the model and its limits. Names are those of vLLM's flags, with underscores.

    `None` means: derived from the checkpoint or the machine when the engine starts. Derived values live in
    new objects (`dataclasses.replace`) and are never written back here.
    """

    model: Path  # a directory in Hugging Face layout, or a GGUF file
    dtype: str = flag("auto", kind="dtype", choices=_DTYPES, help="type of weights and KV cache")
    quantization: str | None = flag(
        None, help="the checkpoint's own method of quantisation, if it has one: others are refused"
    )
    load_format: str = flag(
        "auto",
        choices=("auto", "hf", "safetensors", "gguf"),
        help="gguf: the only GGUF model in the directory; a path that ends in .gguf needs no flag",
    )
    device: str = flag(
        "auto", choices=("auto", "cpu", "cuda"), help="what computes; auto = a GPU if there is one"
    )
    model_impl: str = flag(
        "auto",
        choices=("auto", "native", "transformers"),
        help="what computes the model: this engine's own class, if it has one, or transformers'",
    )
    max_model_len: int | None = flag(
        None,
        kind="length",
        help="maximum number of tokens in prompt and output together, such as 4096, 4k or 4K",
    )
    max_num_seqs: int = flag(64, help="maximum number of sequences in one step")
    max_num_batched_tokens: int = flag(
        2048, help="maximum number of tokens in one step; longer prompts are prefilled in chunks"
    )
    max_prefill_beside_decodes: int | None = None  # prompt tokens in a step that has decodes
    block_size: int = flag(16, help="number of tokens in a KV-cache block")
    num_gpu_blocks_override: int | None = flag(None, help="number of KV-cache blocks, also on CPUs")
    kv_cache_memory_bytes: int | None = flag(
        None, help="size of the KV cache, such as 2G; default: what memory allows"
    )
    gpu_memory_utilization: float = flag(
        0.9, kind="fraction", help="share of a GPU's memory for weights, KV cache and steps together"
    )
    tensor_parallel_size: int = flag(
        1, help="number of devices, or processes on a CPU, that share each layer (-tp, --tp)"
    )
    enable_prefix_caching: bool = flag(
        True, help="keep the KV cache of prompts for later prompts that begin alike"
    )
    num_threads: int | None = flag(None, help="number of PyTorch's threads on a CPU")
    runner: str = flag(
        "auto",
        choices=("auto", "generate", "pooling"),
        help="generate text, or compute embeddings and scores; auto = as the checkpoint says",
    )
    convert: str = flag(
        "auto",
        choices=("auto", "none", "embed", "classify"),
        help="what the pooling runner makes of the model; auto = as the checkpoint says",
    )
    hf_overrides: Mapping[str, Any] = flag(dict, help="JSON that overrides config.json")
    enable_lora: bool = flag(False, help="let requests use LoRA adapters")
    max_lora_rank: int = flag(16, help="maximum rank of an adapter")
    # read by engine/pooling/plan.py
    pooler_config: Mapping[str, Any] = flag(dict, help="JSON: pooling_type, use_activation, …")


@dataclass(frozen=True, slots=True)
class AdapterPath:
    """A LoRA adapter: its name in requests, and its directory."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP server's configuration."""

    host: str = flag("127.0.0.1", help="address to listen on; 0.0.0.0 = all of this machine's")
    port: int = flag(8000, kind="port", help="port to listen on; 0 = any free one")
    served_model_names: tuple[str, ...] = flag(
        (), "--served-model-name", help="names that requests may use; responses contain the first"
    )
    api_keys: tuple[str, ...] = flag(  # empty = no key is required
        (),
        "--api-key",
        action="extend",
        help="one or more keys; may be repeated; the environment variable VLLM_API_KEY is safer",
    )
    berth_key: str | None = None  # Berth's own, of api_keys: its sender may name the tenant it acts for
    tokenizer: Path | None = flag(None, help="directory with the tokenizer; default: the model's directory")
    chat_template: str | None = flag(None, help="a file, or Jinja source")  # here: its source
    chat_template_content_format: str = flag(
        "auto",
        choices=("auto", "string", "openai"),
        help="how the template gets a message's content: as text, or as a list of parts; auto = as it needs",
    )
    trust_request_chat_template: bool = flag(
        False, help="let requests contain their own chat template, which runs in a sandbox"
    )
    tool_call_parser: str | None = flag(None, help=_PARSER, also={"--enable-auto-tool-choice": _TOOL_CHOICE})
    reasoning_parser: str | None = flag(None, help=_PARSER)
    takes_adapters: bool = False  # --enable-lora
    lora_modules: tuple[AdapterPath, ...] = flag(
        (), action="extend", help='adapters to load: NAME=PATH, or {"name": …, "path": …}'
    )
    max_logprobs: int = flag(20, kind="integer", help="-1 = no limit")  # per position of a request
    stream_interval: int = flag(
        1, help="number of tokens per event of a stream; requests may choose a higher number"
    )
    default_chat_template_kwargs: Mapping[str, Any] = flag(
        dict, help='JSON: values for the chat template, such as {"enable_thinking": false}; requests override'
    )
    generation_config: str = flag(
        "auto",
        choices=("auto", "vllm"),
        help="defaults of sampling: auto = the checkpoint's generation_config.json, vllm = neutral ones",
    )
    override_generation_config: Mapping[str, Any] = flag(
        dict, help='JSON: other defaults of sampling, such as {"temperature": 0.7}'
    )
    seed: int | None = flag(
        None, kind="integer", help="makes the outputs of requests without a seed repeatable"
    )
    max_waiting: int = flag(
        1024,
        "--max-num-queued-reqs",
        "--max-waiting",
        help="number of requests that may wait; beyond it, new ones get status 429",
    )
    shutdown_timeout_s: float = flag(
        5.0,
        "--shutdown-timeout",
        kind="seconds",
        help="how many seconds running requests may take to end after SIGTERM",
    )
    enable_sleep_mode: bool = flag(False, help="serve the routes for sleep mode, such as /sleep and /wake_up")
    unknown_fields: str = flag(
        "warn",
        choices=("warn", "refuse"),
        help="unknown fields of requests: warn = name them in a Warning header; refuse = return 400",
    )
    access_log: bool = flag(
        False,
        "--disable-uvicorn-access-log",
        is_negated=True,
        help="log no line for each HTTP request, which is the default",
    )
    log_requests: bool = flag(
        True,
        "--enable-log-requests",
        help="log a line for each request, without its text",
        also={"--disable-log-requests": "log no requests"},
    )
    log_stats: bool = flag(
        True, "--disable-log-stats", is_negated=True, help="don't log the throughput every ten seconds"
    )
    log_level: str = flag(
        "info",
        "--uvicorn-log-level",
        "--log-level",
        kind="word",
        choices=_LOG_LEVELS,
        help="the least important lines that are logged",
    )
