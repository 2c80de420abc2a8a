"""The command line's parser: our flags, and all of vLLM's by name."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any, NoReturn

from engine.config import EngineConfig, ServerConfig
from engine.errors import ConfigError
from engine.launch import vllm_flags
from engine.launch.flag_values import fraction, human_int, json_object, model_len, port, seconds

FOREIGN = "vllm:"  # prefix, in the namespace, of flags that aren't ours
_DTYPES = ("float32", "bfloat16", "float16", "float", "half")
_LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


class _FlagParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def build_parser() -> argparse.ArgumentParser:
    parser = _FlagParser(
        prog="python -m engine", allow_abbrev=False, description="Serves one model over HTTP."
    )
    _add_engine_flags(parser.add_argument_group("engine"))
    server = parser.add_argument_group("server")
    _add_listener_flags(server)
    _add_text_flags(server)
    _add_operation_flags(server)
    ours = set(parser._option_string_actions)
    for name in sorted(vllm_flags.SWITCHES | vllm_flags.VALUES | vllm_flags.LISTS):
        if f"--{name}" not in ours:
            _add_foreign_flag(parser, name)
    return parser


def _add_engine_flags(group: argparse._ArgumentGroup) -> None:
    default = EngineConfig(model=Path())
    add = group.add_argument
    add("--model", "--model-path", help="directory in Hugging Face layout, or a name on the hub")
    add("model_tag", nargs="?", metavar="MODEL", help="the same as --model")
    add("--dtype", default=default.dtype, choices=["auto", *_DTYPES], help="type of weights and KV cache")
    add("--device", default=default.device, choices=["auto", "cpu", "cuda"])
    add(
        "--max-model-len",
        type=model_len,
        help="maximum number of tokens in prompt and output together, such as 4096, 4k or 4K",
    )
    add(
        "--max-num-seqs",
        type=human_int,
        default=default.max_num_seqs,
        help="maximum number of sequences in one step",
    )
    add("--max-num-batched-tokens", type=human_int, default=default.max_num_batched_tokens)
    add(
        "--block-size",
        type=human_int,
        default=default.block_size,
        help="number of tokens in a KV-cache block",
    )
    add("--num-gpu-blocks-override", type=human_int, help="number of KV-cache blocks, also on CPUs")
    add("--kv-cache-memory-bytes", type=human_int)
    add("--gpu-memory-utilization", type=fraction, default=default.gpu_memory_utilization)
    add(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=default.enable_prefix_caching,
    )
    add("--num-threads", type=human_int, help="number of PyTorch's threads on a CPU")
    add("--runner", default=default.runner, choices=["auto", "generate", "pooling"])
    add("--convert", default=default.convert, choices=["auto", "none", "embed", "classify"])
    add("--hf-overrides", type=json_object, default={}, help="JSON that overrides config.json")
    add("--pooler-config", type=json_object, default={}, help="JSON: pooling_type, use_activation, …")


def _add_listener_flags(group: argparse._ArgumentGroup) -> None:
    default = ServerConfig()
    add = group.add_argument
    add("--host", default=default.host)
    add("--port", type=port, default=default.port)
    add(
        "--served-model-name",
        nargs="+",
        default=[],
        help="names that requests may use; responses contain the first",
    )
    add(
        "--api-key",
        nargs="+",
        action="extend",
        default=[],
        help="one or more keys; may be repeated; the environment variable VLLM_API_KEY is safer",
    )


def _add_text_flags(group: argparse._ArgumentGroup) -> None:
    default = ServerConfig()
    add = group.add_argument
    add("--tokenizer", type=Path, help="directory with the tokenizer; default: the model's directory")
    add("--chat-template", help="a file, or Jinja source")
    add("--chat-template-content-format", default="auto", choices=["auto", "string", "openai"])
    add("--trust-request-chat-template", action=argparse.BooleanOptionalAction, default=False)
    add("--tool-call-parser", help="a parser's name, or none; default: detected from the chat template")
    add("--enable-auto-tool-choice", action=argparse.BooleanOptionalAction, default=True)
    add("--reasoning-parser", help="a parser's name, or none; default: detected from the chat template")
    add("--max-logprobs", type=int, default=default.max_logprobs, help="-1 = no limit")
    add(
        "--stream-interval",
        type=human_int,
        default=default.stream_interval,
        help="number of tokens per event of a stream; requests may choose a higher number",
    )
    add("--default-chat-template-kwargs", type=json_object, default={})
    add("--generation-config", default=default.generation_config, choices=["auto", "vllm"])
    add("--override-generation-config", type=json_object, default={})
    add("--seed", type=int, help="makes the outputs of requests without a seed repeatable")


def _add_operation_flags(group: argparse._ArgumentGroup) -> None:
    default = ServerConfig()
    add = group.add_argument
    add("--max-num-queued-reqs", "--max-waiting", type=human_int, default=default.max_waiting)
    add("--shutdown-timeout", type=seconds, default=default.shutdown_timeout_s)
    add(
        "--enable-sleep-mode",
        action=argparse.BooleanOptionalAction,
        help="serve the routes for sleep mode, such as /sleep and /wake_up",
    )
    add(
        "--unknown-fields",
        default=default.unknown_fields,
        choices=["warn", "refuse"],
        help="unknown fields of requests: warn = name them in a Warning header; refuse = return 400",
    )
    add("--disable-uvicorn-access-log", action=argparse.BooleanOptionalAction, default=not default.access_log)
    add(
        "--enable-log-requests",
        action=argparse.BooleanOptionalAction,
        default=default.log_requests,
        help="log a line for each request, without its text",
    )
    add(
        "--disable-log-requests", action=argparse.BooleanOptionalAction, default=False, help="log no requests"
    )
    add(
        "--disable-log-stats",
        action=argparse.BooleanOptionalAction,
        default=not default.log_stats,
        help="don't log the throughput every ten seconds",
    )
    add("--uvicorn-log-level", "--log-level", type=str.lower, default=default.log_level, choices=_LOG_LEVELS)


def _add_foreign_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """A flag that isn't given isn't in the namespace."""
    flag = f"--{name}"
    options: dict[str, Any] = {
        "dest": FOREIGN + name,
        "default": argparse.SUPPRESS,
        "help": argparse.SUPPRESS,
    }
    if name in vllm_flags.SWITCHES:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif name in vllm_flags.LISTS:
        parser.add_argument(flag, nargs="*", **options)
    else:
        parser.add_argument(flag, **options)


def normalise(word: str) -> str:
    """`--max_model_len=4096` and `-tp` as the parser spells them."""
    if not word.startswith("-"):
        return word
    name, equals, value = word.partition("=")
    if name in vllm_flags.ALIASES:
        name = f"--{vllm_flags.ALIASES[name]}"
    elif name.startswith("--"):
        name = name.replace("_", "-")
    else:
        return word
    return name + equals + value


def describe_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    name = word.partition("=")[0]
    close = difflib.get_close_matches(name, list(parser._option_string_actions), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"Unknown argument {name!r}{hint}."
