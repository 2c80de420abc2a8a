"""The command line: flags named as vLLM names them, so that one set of parameters starts either engine.

Three kinds: ours; vLLM's that we have no use for (accepted, each with a warning that names it); and vLLM's
whose meaning we can't provide (refused unless they ask for what we do anyway: to accept and ignore one would
be a lie). Anything else is an error. Knows nothing of torch, HTTP or the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import EngineConfig, ServerConfig
from engine.errors import ConfigError
from engine.launch.flag_parser import FOREIGN, build_parser, describe_unknown, normalise
from engine.launch.flag_rules import RULES

_DTYPE_SYNONYMS = {"float": "float32", "half": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """A parsed command line. `engine.model` is the name as given; checkpoint/model_path.py finds it."""

    engine: EngineConfig
    server: ServerConfig
    warnings: tuple[str, ...]


def parse_flags(argv: Sequence[str], environ: Mapping[str, str]) -> Flags:
    """Read `argv` (without the program's name). Raises ConfigError; `--help` prints and exits."""
    parser = build_parser()
    namespace, unknown = parser.parse_known_args([normalise(word) for word in argv])
    if unknown:
        raise ConfigError(describe_unknown(unknown[0], parser))
    values = vars(namespace)
    values["model"] = _model_of(values, environ)
    foreign = {name.removeprefix(FOREIGN): values[name] for name in values if name.startswith(FOREIGN)}
    warnings = _check_foreign(foreign)
    try:
        return Flags(engine=_engine_config(values), server=_server_config(values, environ), warnings=warnings)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def to_argv(flags: Mapping[str, Any]) -> list[str]:
    """A program's keyword arguments as command-line arguments."""
    argv: list[str] = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, bool):
            argv.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list | tuple):
            argv += [flag, *map(str, value)]
        else:
            argv.append(f"{flag}={json.dumps(value) if isinstance(value, Mapping) else value}")
    return argv


def _check_foreign(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Warnings for vLLM's flags without a meaning here. Raises ConfigError for those we can't honour."""
    warnings = []
    for name, value in given.items():
        text = _as_text(value)
        rule = RULES.get(name)
        if rule is None:
            warnings.append(f"--{name} is a vLLM flag that this engine doesn't use; it has no effect")
        elif text not in rule.allowed:
            allowed = f" (possible: {', '.join(sorted(rule.allowed))})" if rule.allowed else ""
            raise ConfigError(f"--{name} {text} can't be honoured: {rule.why}{allowed}")
    return tuple(warnings)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(value) if isinstance(value, list) else str(value)


def _model_of(values: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """With the flag, without it, or from the environment variable of other servers. Raises ConfigError."""
    flag, word = values["model"], values["model_tag"]
    if flag is not None and word is not None and flag != word:
        raise ConfigError(f"Unknown argument {word!r}: the model is already given by --model {flag}.")
    model = flag or word or environ.get("NANOVLLM_MODEL_PATH")
    if not model:
        raise ConfigError("No model is given: name one with --model.")
    return str(model)


def _engine_config(values: Mapping[str, Any]) -> EngineConfig:
    return EngineConfig(
        model=Path(values["model"]),
        dtype=_DTYPE_SYNONYMS.get(values["dtype"], values["dtype"]),
        device=values["device"],
        max_model_len=values["max_model_len"],
        max_num_seqs=values["max_num_seqs"],
        max_num_batched_tokens=values["max_num_batched_tokens"],
        block_size=values["block_size"],
        num_gpu_blocks_override=values["num_gpu_blocks_override"],
        kv_cache_memory_bytes=values["kv_cache_memory_bytes"],
        gpu_memory_utilization=values["gpu_memory_utilization"],
        enable_prefix_caching=values["enable_prefix_caching"],
        num_threads=values["num_threads"],
        runner=values["runner"],
        convert=values["convert"],
        hf_overrides=values["hf_overrides"],
        pooler_config=values["pooler_config"],
    )


def _server_config(values: Mapping[str, Any], environ: Mapping[str, str]) -> ServerConfig:
    environment_key = environ.get("VLLM_API_KEY")
    api_keys = tuple(key for key in values["api_key"] if key) or (
        (environment_key,) if environment_key else ()
    )
    return ServerConfig(
        host=values["host"],
        port=values["port"],
        served_model_names=tuple(values["served_model_name"]) or (values["model"],),
        api_keys=api_keys,
        berth_key=environment_key if environ.get("BERTH_INSTANCE_TOKEN") and not values["api_key"] else None,
        tokenizer=values["tokenizer"],
        chat_template=_chat_template(values["chat_template"]),
        chat_template_content_format=values["chat_template_content_format"],
        trust_request_chat_template=values["trust_request_chat_template"],
        tool_call_parser=values["tool_call_parser"] if values["enable_auto_tool_choice"] else "none",
        reasoning_parser=values["reasoning_parser"] or None,
        stream_interval=values["stream_interval"],
        max_logprobs=values["max_logprobs"],
        default_chat_template_kwargs=values["default_chat_template_kwargs"],
        generation_config=values["generation_config"],
        override_generation_config=values["override_generation_config"],
        seed=values["seed"],
        max_waiting=values["max_num_queued_reqs"],
        shutdown_timeout_s=values["shutdown_timeout"],
        enable_sleep_mode=_sleep_mode(values["enable_sleep_mode"], environ),
        unknown_fields=values["unknown_fields"],
        access_log=not values["disable_uvicorn_access_log"],
        log_requests=values["enable_log_requests"] and not values["disable_log_requests"],
        log_stats=not values["disable_log_stats"],
        log_level=values["uvicorn_log_level"],
    )


def _sleep_mode(flag: bool | None, environ: Mapping[str, str]) -> bool:
    """The flag; without it, vLLM's environment variable for such routes."""
    return environ.get("VLLM_SERVER_DEV_MODE") == "1" if flag is None else flag


def _chat_template(value: str | None) -> str | None:
    """A path, or the source: text with braces or line ends is not a path."""
    if value is None or re.search(r"[{}\n]", value):
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--chat-template {value}: neither a readable file nor Jinja source: {error}"
        ) from error
