"""The command line: flags named as vLLM names them, so that one set of parameters starts either engine.

Three kinds: ours; vLLM's that we have no use for (accepted, each with a warning that names it); and vLLM's
whose meaning we can't provide (refused unless they ask for what we do anyway: to accept and ignore one would
be a lie). Anything else is an error. Knows nothing of torch, HTTP or the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.config import EngineConfig, ServerConfig
from engine.errors import ConfigError
from engine.launch.flag_parser import FOREIGN, build_parser, describe_unknown, is_boolean, normalise
from engine.launch.flag_rules import RULES

_MODEL_VARIABLE = "NANOVLLM_MODEL_PATH"  # of another server; used if no flag names the model
_Config = TypeVar("_Config", EngineConfig, ServerConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """A parsed command line. `engine.model` is the name as given; checkpoint/model_path.py finds it."""

    engine: EngineConfig
    server: ServerConfig
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()  # on names that stand for others


def parse_flags(argv: Sequence[str], environ: Mapping[str, str]) -> Flags:
    """Read `argv` (without the program's name). Raises ConfigError; `--help` prints and exits."""
    parser = build_parser()
    words = [normalise(word) for word in argv]
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        raise ConfigError(describe_unknown(unknown[0], parser))
    values = vars(namespace)
    values["model"] = _model_of(values, environ)
    foreign = {name.removeprefix(FOREIGN): values[name] for name in values if name.startswith(FOREIGN)}
    warnings = _check_foreign(foreign)
    if values.get("lora_modules") and not values.setdefault("enable_lora", True):
        raise ConfigError("--lora-modules needs --enable-lora, and --no-enable-lora is given.")
    engine = _config(EngineConfig, {**values, "model": Path(values["model"])})
    try:
        server = _server_config(values, environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    notes = tuple(_notes(argv, words, values, environ))
    return Flags(engine=engine, server=server, warnings=warnings, notes=notes)


def _notes(
    argv: Sequence[str], words: Sequence[str], values: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[str]:
    """What the names of other servers, as far as they were given, stand for."""
    given, meant = ([word.partition("=")[0] for word in each] for each in (argv, words))
    if "--model-path" in meant:
        yield "--model-path is an alias of --model"
    if "--tp" in given:
        yield "--tp is an alias of --tensor-parallel-size"
    if meant.count("--api-key") > 1:
        yield f"--api-key, given {meant.count('--api-key')} times, is an alias of one --api-key with all keys"
    if not (values["model_tag"] or {"--model", "--model-path"} & set(meant)):
        yield f"{_MODEL_VARIABLE}={environ[_MODEL_VARIABLE]} is an alias of --model"


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
            argv += [flag, *(json.dumps(item) if isinstance(item, Mapping) else str(item) for item in value)]
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
        if is_boolean(word):
            raise ConfigError(describe_unknown(word, build_parser()))
        raise ConfigError(f"Unknown argument {word!r}: the model is already given by --model {flag}.")
    model = flag or word or environ.get(_MODEL_VARIABLE)
    if not model:
        raise ConfigError("No model is given: name one with --model.")
    return str(model)


def _server_config(values: Mapping[str, Any], environ: Mapping[str, str]) -> ServerConfig:
    given = _config(ServerConfig, values)
    key = environ.get("VLLM_API_KEY")
    dev_mode = environ.get("VLLM_SERVER_DEV_MODE") == "1"  # vLLM's variable for routes such as /sleep
    return replace(
        given,
        served_model_names=given.served_model_names or (values["model"],),
        api_keys=tuple(filter(None, given.api_keys)) or ((key,) if key else ()),
        berth_key=key if environ.get("BERTH_INSTANCE_TOKEN") and not given.api_keys else None,
        chat_template=_chat_template(given.chat_template),
        tool_call_parser=given.tool_call_parser if values.get("enable_auto_tool_choice", True) else "none",
        reasoning_parser=given.reasoning_parser or None,
        takes_adapters=values.get("enable_lora", False),
        enable_sleep_mode=values.get("enable_sleep_mode", dev_mode),
        log_requests=given.log_requests and not values.get("disable_log_requests", False),
    )


def _config(config: type[_Config], values: Mapping[str, Any]) -> _Config:
    """The fields whose flags are given; the others have their defaults."""
    return config(**{f.name: _value(f, values[f.name]) for f in fields(config) if f.name in values})


def _value(field: Field[Any], value: Any) -> Any:
    """As the field holds it. `value`: the flag's."""
    if isinstance(value, bool):
        return value != field.metadata["is_negated"]
    return tuple(value) if isinstance(value, list) else value


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
