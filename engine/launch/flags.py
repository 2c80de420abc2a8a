"""The command line: flags named as vLLM names them, so that one set of parameters starts either engine.

Three kinds: ours; vLLM's that we have no use for (accepted, each with a warning that names it); and vLLM's
whose meaning we can't give (refused unless they ask for what we do anyway: accepted and ignored would be a
lie). Anything else is an error. Knows nothing of torch, HTTP or the model.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.config import EngineConfig, ServerConfig
from engine.errors import ConfigError
from engine.launch import vllm_flags
from engine.launch.flag_rules import RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """A command line, understood. `engine.model` is the name as given; checkpoint/model_path.py finds it."""

    engine: EngineConfig
    server: ServerConfig
    warnings: tuple[str, ...]


def parse_flags(argv: Sequence[str], environ: Mapping[str, str]) -> Flags:
    """Read `argv` (without the program's name). Raises ConfigError; `--help` prints and exits."""
    parser = _build_parser()
    namespace, unknown = parser.parse_known_args([_normalise(word) for word in argv])
    if unknown:
        raise ConfigError(_describe_unknown(unknown[0], parser))
    values = vars(namespace)
    values["model"] = _model_of(values, environ)
    foreign = {name.removeprefix(_FOREIGN): values[name] for name in values if name.startswith(_FOREIGN)}
    warnings = _judge_foreign(foreign)
    try:
        return Flags(engine=_engine_config(values), server=_server_config(values, environ), warnings=warnings)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def to_argv(flags: Mapping[str, Any]) -> list[str]:
    """A program's keywords as a command line's words."""
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m engine", allow_abbrev=False, description="Serves one model over HTTP.")
    _add_engine_flags(parser.add_argument_group("engine"))
    _add_server_flags(parser.add_argument_group("server"))
    ours = set(parser._option_string_actions)
    for name in sorted(vllm_flags.SWITCHES | vllm_flags.VALUES | vllm_flags.LISTS):
        if f"--{name}" not in ours:
            _add_foreign_flag(parser, name)
    return parser


def _add_engine_flags(group: argparse._ArgumentGroup) -> None:
    default = EngineConfig(model=Path())
    add = group.add_argument
    add("--model", "--model-path", help="directory in Hugging Face layout, or a name of the hub")
    add("model_tag", nargs="?", metavar="MODEL", help="the same without its flag's name")
    add("--dtype", default=default.dtype, choices=["auto", *_DTYPES], help="of weights and KV cache")
    add("--device", default=default.device, choices=["auto", "cpu", "cuda"])
    add(
        "--max-model-len",
        type=_model_len,
        help="tokens of prompt and output together; 4k and 4K are understood",
    )
    add("--max-num-seqs", type=_human_int, default=default.max_num_seqs, help="sequences in one step")
    add("--max-num-batched-tokens", type=_human_int, default=default.max_num_batched_tokens)
    add("--block-size", type=_human_int, default=default.block_size, help="tokens in a KV-cache block")
    add("--num-gpu-blocks-override", type=_human_int, help="KV-cache blocks, exactly; on a CPU too")
    add("--kv-cache-memory-bytes", type=_human_int)
    add("--gpu-memory-utilization", type=_fraction, default=default.gpu_memory_utilization)
    add(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=default.enable_prefix_caching,
    )
    add("--num-threads", type=_human_int, help="torch's threads within an operation, on a CPU")
    add("--runner", default=default.runner, choices=["auto", "generate", "pooling"])
    add("--convert", default=default.convert, choices=["auto", "none", "embed", "classify"])
    add("--hf-overrides", type=_json_object, default={}, help="JSON that wins over config.json")
    add("--pooler-config", type=_json_object, default={}, help="JSON: pooling_type, use_activation, …")


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    default = ServerConfig()
    add = group.add_argument
    add("--host", default=default.host)
    add("--port", type=_port, default=default.port)
    add("--served-model-name", nargs="+", default=[], help="the first is reported, all are accepted")
    add(
        "--api-key",
        nargs="+",
        action="extend",
        default=[],
        help="one or more; may be repeated; better in the environment: VLLM_API_KEY",
    )
    add("--tokenizer", type=Path, help="directory to read the tokenizer from; default: the model's")
    add("--chat-template", help="a file, or the Jinja source itself")
    add("--chat-template-content-format", default="auto", choices=["auto", "string", "openai"])
    add("--trust-request-chat-template", action=argparse.BooleanOptionalAction, default=False)
    add("--tool-call-parser", help="none, or its name; default: as the chat template shows")
    add("--enable-auto-tool-choice", action=argparse.BooleanOptionalAction, default=True)
    add("--reasoning-parser", help="none, or its name; default: as the chat template shows")
    add("--max-logprobs", type=int, default=default.max_logprobs, help="-1 = no limit")
    add(
        "--stream-interval",
        type=_human_int,
        default=default.stream_interval,
        help="tokens in each piece of a stream; requests may ask for more",
    )
    add("--default-chat-template-kwargs", type=_json_object, default={})
    add("--generation-config", default=default.generation_config, choices=["auto", "vllm"])
    add("--override-generation-config", type=_json_object, default={})
    add("--seed", type=int, help="makes the draws of requests without a seed repeatable")
    add("--max-num-queued-reqs", "--max-waiting", type=_human_int, default=default.max_waiting)
    add("--shutdown-timeout", type=_seconds, default=default.shutdown_timeout_s)
    add(
        "--enable-sleep-mode",
        action=argparse.BooleanOptionalAction,
        help="routes /sleep, /wake_up and their like",
    )
    add(
        "--unknown-fields",
        default=default.unknown_fields,
        choices=["warn", "refuse"],
        help="of a request: warn = accepted, and named in a Warning header",
    )
    add("--disable-uvicorn-access-log", action=argparse.BooleanOptionalAction, default=not default.access_log)
    add(
        "--enable-log-requests",
        action=argparse.BooleanOptionalAction,
        default=default.log_requests,
        help="a line in the log for each request, without its text",
    )
    add("--disable-log-requests", action=argparse.BooleanOptionalAction, default=False, help="the opposite")
    add(
        "--disable-log-stats",
        action=argparse.BooleanOptionalAction,
        default=not default.log_stats,
        help="no line of throughput every ten seconds in which there is work",
    )
    add("--uvicorn-log-level", "--log-level", type=str.lower, default=default.log_level, choices=_LOG_LEVELS)


_FOREIGN = "vllm:"  # starts the namespace's names of flags that aren't ours
_DTYPES = ("float32", "bfloat16", "float16", "float", "half")
_DTYPE_SYNONYMS = {"float": "float32", "half": "float16"}
_LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


def _add_foreign_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """What isn't given isn't in the namespace."""
    flag = f"--{name}"
    options: dict[str, Any] = {
        "dest": _FOREIGN + name,
        "default": argparse.SUPPRESS,
        "help": argparse.SUPPRESS,
    }
    if name in vllm_flags.SWITCHES:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif name in vllm_flags.LISTS:
        parser.add_argument(flag, nargs="*", **options)
    else:
        parser.add_argument(flag, **options)


def _normalise(word: str) -> str:
    """`--max_model_len=4096` and `-tp` as the parser knows them."""
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


def _describe_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    name = word.partition("=")[0]
    close = difflib.get_close_matches(name, list(parser._option_string_actions), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"Unknown argument {name!r}{hint}."


def _judge_foreign(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Warnings for vLLM's flags that have no meaning here. Raises ConfigError for those we can't honour."""
    warnings = []
    for name, value in given.items():
        text = _as_text(value)
        rule = RULES.get(name)
        if rule is None:
            warnings.append(f"--{name} is a vLLM flag that this engine has no use for; it changes nothing")
        elif text not in rule.allowed:
            allowed = f" (possible: {', '.join(sorted(rule.allowed))})" if rule.allowed else ""
            raise ConfigError(f"--{name} {text} can't be honoured: {rule.why}{allowed}")
    return tuple(warnings)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(value) if isinstance(value, list) else str(value)


def _model_of(values: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """By its flag, without one, or by the variable that other servers have for it. Raises ConfigError."""
    flag, word = values["model"], values["model_tag"]
    if flag is not None and word is not None and flag != word:
        raise ConfigError(f"Unknown argument {word!r}: the model is given already, by --model {flag}.")
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
    """The flag, or without one what vLLM's variable for such routes says."""
    return environ.get("VLLM_SERVER_DEV_MODE") == "1" if flag is None else flag


def _chat_template(value: str | None) -> str | None:
    """A path, or the source: whatever has braces or line ends is no path."""
    if value is None or re.search(r"[{}\n]", value):
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--chat-template {value}: not a readable file, and no Jinja source: {error}"
        ) from error


_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}


def _human_int(text: str) -> int:
    """`4096`, `4k` (4000), `4K` (4096), `1.5G`: as vLLM reads them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0, such as 4096, 4k or 4K")
    return int(value)


def _model_len(text: str) -> int | None:
    return None if text in ("auto", "-1") else _human_int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 … 65535")
    return int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
