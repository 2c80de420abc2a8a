"""The engine's configuration: frozen, checked once, passed down; built by engine/launch/flags.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The core's configuration: the model and its limits. Names are those of vLLM's flags, with underscores.

    `None` means: derived from the checkpoint or the machine when the engine starts. Derived values live in
    new objects (`dataclasses.replace`) and are never written back here.
    """

    model: Path  # a directory in Hugging Face layout
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    device: str = "auto"  # auto | cpu | cuda
    max_model_len: int | None = None  # tokens of prompt and output together
    max_num_seqs: int = 64  # sequences in one step
    max_num_batched_tokens: int = 2048  # tokens in one step; longer prompts are prefilled in chunks
    max_prefill_beside_decodes: int | None = None  # prompt tokens in a step that has decodes
    block_size: int = 16  # tokens in a KV-cache block
    num_gpu_blocks_override: int | None = None  # KV-cache blocks, exactly (vLLM's name; applies to a CPU too)
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    num_threads: int | None = None  # torch's intra-op threads on a CPU
    runner: str = "auto"  # auto | generate | pooling
    convert: str = "auto"  # auto | none | embed | classify: what a pooling runner makes of the model
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)  # override config.json
    pooler_config: Mapping[str, Any] = field(default_factory=dict)  # read by engine/pooling/plan.py


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP server's configuration."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()  # the first is reported; all are accepted
    api_keys: tuple[str, ...] = ()  # from --api-key or VLLM_API_KEY; empty = no key is required
    berth_key: str | None = None  # Berth's own, of api_keys: its sender may name the tenant it acts for
    tokenizer: Path | None = None  # a directory; None = the model's
    chat_template: str | None = None  # Jinja source; None = the checkpoint's own
    chat_template_content_format: str = "auto"  # auto | string | openai
    trust_request_chat_template: bool = False  # requests may contain their own template
    tool_call_parser: str | None = None  # None = detected from the chat template; "none" = none
    reasoning_parser: str | None = None  # likewise
    stream_interval: int = 1  # tokens in each piece of a stream; requests may ask for more
    max_logprobs: int = 20  # most that a request may ask for per position; -1 = no limit
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    generation_config: str = "auto"  # auto: the checkpoint's sampling defaults; vllm: neutral ones
    override_generation_config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None  # of the generator that gives requests without a seed theirs
    max_waiting: int = 1024  # requests in the engine before new ones get 429
    shutdown_timeout_s: float = 5.0  # running requests may take this long to end after SIGTERM
    enable_sleep_mode: bool = False  # routes that control the engine: /sleep, /reset_prefix_cache …
    unknown_fields: str = "warn"  # warn | refuse: undeclared fields in request bodies
    access_log: bool = False
    log_requests: bool = True  # a line per request, with its tokens and times
    log_stats: bool = True  # a line of throughput every ten seconds in which there is work
    log_level: str = "info"
