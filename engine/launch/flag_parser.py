"""The command line's parser: our flags, and all of vLLM's by name."""

from __future__ import annotations

import argparse
import difflib
from dataclasses import Field, fields
from typing import Any, NoReturn

from engine.config import EngineConfig, ServerConfig
from engine.errors import ConfigError
from engine.launch import vllm_flags
from engine.launch.flag_values import READERS

FOREIGN = "vllm:"  # prefix, in the namespace, of flags that aren't ours


class _FlagParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def build_parser() -> argparse.ArgumentParser:
    parser = _FlagParser(
        prog="python -m engine", allow_abbrev=False, description="Serves one model over HTTP."
    )
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model", "--model-path", help="directory in Hugging Face layout, or a name on the hub"
    )
    group.add_argument("model_tag", nargs="?", metavar="MODEL", help="the same as --model")
    add_flags(group, EngineConfig)
    add_flags(parser.add_argument_group("server"), ServerConfig)
    ours = set(parser._option_string_actions)
    for name in sorted(vllm_flags.SWITCHES | vllm_flags.VALUES | vllm_flags.LISTS):
        if f"--{name}" not in ours:
            _add_foreign_flag(parser, name)
    return parser


def add_flags(group: argparse._ArgumentGroup, config: type[Any]) -> None:
    """One flag for each field made by `engine.config.flag`; in the namespace, by field, if it is given."""
    for field in fields(config):
        if field.metadata:
            _add_flag(group, field)


def _add_flag(group: argparse._ArgumentGroup, field: Field[Any]) -> None:
    names = field.metadata["names"] or (f"--{field.name.replace('_', '-')}",)
    kind = field.metadata["kind"] or str(field.type).removesuffix(" | None")
    options = {"dest": field.name, "default": argparse.SUPPRESS, **field.metadata["options"]}
    if kind == "bool":
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = READERS[kind]
        options["nargs"] = "+" if kind.startswith("tuple") else None
        if "choices" not in options:
            options["metavar"] = names[0].removeprefix("--").replace("-", "_").upper()
    group.add_argument(*names, **options)
    for name, text in (field.metadata["also"] or {}).items():
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)


def _add_foreign_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """A flag that isn't given isn't in the namespace."""
    options: dict[str, Any] = {"dest": FOREIGN + name, "help": argparse.SUPPRESS}
    if name in vllm_flags.SWITCHES:
        options["action"] = argparse.BooleanOptionalAction
    elif name in vllm_flags.LISTS:
        options["nargs"] = "*"
    parser.add_argument(f"--{name}", default=argparse.SUPPRESS, **options)


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


def is_boolean(word: str) -> bool:
    return word.lower() in ("true", "false")


def describe_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if is_boolean(word):
        return f"Unknown argument {word!r}: a switch takes no value; --no- before its name turns it off."
    name = word.partition("=")[0]
    close = difflib.get_close_matches(name, list(parser._option_string_actions), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"Unknown argument {name!r}{hint}."
