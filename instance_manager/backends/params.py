"""Engine parameters: how layers of defaults merge, and how the result becomes command-line flags. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from instance_manager.errors import InvalidSpec

MASK = "***"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# The last word decides: `--api-key` and `hf_token` are secrets, `--max-num-batched-tokens` isn't.
_SECRET_NAME = re.compile(r"(?:^|[-_])(?:key|token|secret|password|passwd)$", re.IGNORECASE)


def merge_params(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge from the weakest layer to the strongest; None removes an inherited key.

    `max-model-len` and `max_model_len` are the same key; the result has underscores.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            key = name.replace("-", "_")
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = value
    return merged


def adapter_names(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The names by which requests select the LoRA adapters of an engine (--lora-modules)."""
    return tuple(name for name, _ in adapters_of(params))


def adapters_of(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and paths of an engine's LoRA adapters; a path may be anything."""
    given = params.get("lora_modules") or ()
    for adapter in given if isinstance(given, list | tuple) else [given]:
        if isinstance(adapter, str) and adapter.lstrip().startswith("{"):
            try:
                adapter = json.loads(adapter)
            except ValueError:
                continue  # the engine will report the error
        if not isinstance(adapter, Mapping):
            adapter = dict(zip(("name", "path"), str(adapter).split("=", 1), strict=False))
        if isinstance(name := adapter.get("name"), str) and name:
            yield name, adapter.get("path")


def takes_adapters(params: Mapping[str, Any]) -> bool:
    """Whether requests can name LoRA adapters of an engine, some of which may be loaded while it runs."""
    return str(params.get("enable_lora")).lower() == "true" or bool(adapter_names(params))


def check_params(params: Mapping[str, Any], owned: frozenset[str]) -> None:
    """Raise InvalidSpec (`param` = `params.<name>`) for a name or value that can't become a flag."""
    for name, value in params.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidSpec(
                f"parameter name {name!r} may only contain letters, digits, '_' and '-'",
                param=f"params.{name}",
            )
        if name.replace("-", "_").lower() in owned:
            raise InvalidSpec(
                f"params.{name} can't be set: Berth sets it for every engine",
                param=f"params.{name}",
            )
        _check_value(f"params.{name}", value)


def _check_value(param: str, value: Any) -> None:
    if isinstance(value, Mapping):
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidSpec(f"{param} isn't a JSON object: {error}", param=param) from None
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            if item is None or (isinstance(item, Sequence) and not isinstance(item, str)):
                raise InvalidSpec(f"{param} may only list strings, numbers and objects", param=param)
            if isinstance(item, str) and item.startswith("-"):
                # After a flag, such an item would be parsed as the next flag.
                raise InvalidSpec(f"{param}: the list item {item!r} must not begin with '-'", param=param)
            _check_value(param, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidSpec(f"{param} must be a finite number, not {value}", param=param)
    elif isinstance(value, str) and "\0" in value:
        raise InvalidSpec(f"{param} must not contain a NUL character", param=param)
    elif value is not None and not isinstance(value, str | int | float):
        raise InvalidSpec(
            f"{param} has the type {type(value).__name__}, which can't become a flag", param=param
        )


def to_flags(params: Mapping[str, Any], has_negation: Callable[[str], bool]) -> list[str]:
    """Command-line arguments for checked, merged parameters, in their order.

    `has_negation`: whether the engine has `--no-<name>` for a kebab-case name.
    """
    argv: list[str] = []
    for name, value in params.items():
        argv += _flag(name.replace("_", "-"), value, has_negation)
    return argv


def _flag(name: str, value: Any, has_negation: Callable[[str], bool]) -> list[str]:
    flag = f"--{name}"
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{name}"] if has_negation(name) else []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [flag, *(as_argument(item) for item in value)] if value else []
    argument = as_argument(value)
    # As an argument of its own, a value that begins with a dash would be parsed as a flag.
    return [f"{flag}={argument}"] if argument.startswith("-") else [flag, argument]


def as_argument(value: Any) -> str:
    """A value in its command-line form."""
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def is_secret(name: str) -> bool:
    """Whether a flag, parameter or variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def mask_command(argv: Sequence[str]) -> list[str]:
    """The command with the values of `--…-key`, `…-token=` and the like replaced."""
    masked: list[str] = []
    hide_next = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            masked.append(MASK)
        elif equals and is_secret(name):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(argument)
        hide_next = not equals and argument.startswith("-") and is_secret(argument)
    return masked


def mask_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with secret values masked, nested ones included."""

    def masked(name: str, value: Any) -> Any:
        if is_secret(name):
            return MASK
        return mask_params(value) if isinstance(value, Mapping) else value

    return {name: masked(name, value) for name, value in params.items()}
