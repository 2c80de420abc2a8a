"""llama.cpp's server out of the Python package xllamacpp, with llama-server's command line.

A script for the interpreter that has the package: it imports nothing of Berth.
What the package has no field for can't be set: the list of devices, tensors by name, metadata of the model,
downloads, control vectors, CPU masks, grammars for all requests, the folders and models of a router.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_TABLE = Path(__file__).with_name("in_process_options.txt")
_DEFAULT_SLOTS = 4  # of llama-server, which then share one KV cache
_API_KEY_VARIABLE = "LLAMA_API_KEY"


class Option(NamedTuple):
    """A flag, and the field of the package's parameters that it sets."""

    names: tuple[str, ...]
    kind: str  # "switch", "integer", "number", "text" or "choice"
    field: str  # with dots; `_Parameters` has a method for those that need more than one assignment
    negative: tuple[str, ...] = ()
    words: Mapping[str, str] = {}  # choices, or words in place of a number: the value


def read_options() -> list[Option]:
    """From the table beside this file."""
    lines = _TABLE.read_text(encoding="utf-8").splitlines()
    return [_option(line) for line in lines if line and not line.startswith("#")]


def _option(line: str) -> Option:
    head, _, rest = line.partition(": ")
    kind, _, field = head.partition(" ")
    spelled, _, words = rest.partition(" = ")
    names = tuple(spelled.split())
    at = next((i for i, name in enumerate(names) if i and name.startswith("--no-")), len(names))
    values = (word.partition(":") for word in words.split())
    return Option(
        names[:at], kind, field, names[at:], {word.lower(): value or word for word, _, value in values}
    )


class BadArgument(Exception):
    """What is wrong with the command line."""


def read_arguments(argv: Sequence[str]) -> list[tuple[Option, str | bool]]:
    """Each flag with its value. Raises BadArgument."""
    options = read_options()
    positive = {name: option for option in options for name in option.names}
    negative = {name: option for option in options for name in option.negative}
    given: list[tuple[Option, str | bool]] = []
    rest = list(argv)
    while rest:
        name = rest.pop(0)
        if name.startswith("--"):
            name = name.replace("_", "-")
        option = positive.get(name) or negative.get(name)
        if option is None:
            raise BadArgument(f"invalid argument: {name}")
        if option.kind == "switch":
            given.append((option, name in positive))
            continue
        if not rest:
            raise BadArgument(f"invalid argument: {name} needs a value")
        given.append((option, rest.pop(0)))
    return given


class _Parameters:
    """The package's parameters, filled from the command line."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self.made = package.CommonParams()

    def put(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self.made, name, value)

    def set(self, option: Option, value: str | bool) -> None:
        """Raises BadArgument."""
        try:
            if (special := _SPECIAL.get(option.field)) is not None:
                special(self, value)
            else:
                self._assign(option, self._converted(option, value))
        except (ValueError, TypeError, OSError, OverflowError, AssertionError) as error:
            raise BadArgument(f'error while handling argument "{option.names[0]}": {error}') from None

    def _assign(self, option: Option, value: Any) -> None:
        *path, name = option.field.split()[-1].split(".")
        target = self.made
        for part in path:
            target = getattr(target, part)
        setattr(target, name, value)

    def _converted(self, option: Option, value: str | bool) -> Any:
        if isinstance(value, bool):
            return value != option.field.startswith("not ")
        if option.kind == "choice":
            if value not in option.words:
                raise ValueError(f"must be one of {', '.join(option.words)}")
            return self._member(option.field.split()[0], option.words[value])
        value = option.words.get(value, value)
        if option.kind == "integer":
            return int(value)
        return float(value) if option.kind == "number" else value

    def _member(self, enum: str, word: str) -> Any:
        members = getattr(self._package, enum)
        prefix = enum.upper().removesuffix("_TYPE") + ("_TYPE_" if enum.endswith("_type") else "_")
        named = {"ON": "ENABLED", "OFF": "DISABLED"} if enum == "llama_flash_attn_type" else {}
        return getattr(members, prefix + named.get(word, word))

    def set_fit_params(self, value: str) -> None:
        if value not in ("on", "off"):
            raise ValueError("must be one of on, off")
        self.put(fit_params=value == "on")

    def set_model_alias(self, value: str) -> None:
        self.put(model_alias={name.strip() for name in value.split(",") if name.strip()})

    def set_hostnames(self, value: str) -> None:
        self.put(hostnames=value.split(","))

    def set_reranking(self, value: bool) -> None:
        self.made.embedding = value
        self.made.pooling_type = self._package.llama_pooling_type.LLAMA_POOLING_TYPE_RANK

    def set_timeout(self, value: str) -> None:
        self.put(timeout_read=int(value), timeout_write=int(value))

    def set_reasoning(self, value: str) -> None:
        if value not in ("on", "off", "auto"):
            raise ValueError("must be one of on, off, auto")
        self.put(enable_reasoning={"on": 1, "off": 0, "auto": -1}[value])
        if value != "auto":
            thinks = json.dumps(value == "on")
            self.made.default_template_kwargs = {
                **self.made.default_template_kwargs,
                "enable_thinking": thinks,
            }

    def set_default_template_kwargs(self, value: str) -> None:
        given = {name: json.dumps(item) for name, item in json.loads(value).items()}
        self.made.default_template_kwargs = {**self.made.default_template_kwargs, **given}

    def set_chat_template_file(self, value: str) -> None:
        with open(value, encoding="utf-8") as file:
            self.made.chat_template = file.read()

    def set_tensor_split(self, value: str) -> None:
        shares = [float(part) for part in value.split(",")]
        self.made.tensor_split = shares + [0.0] * (len(self.made.tensor_split) - len(shares))

    def set_fit_params_target(self, value: str) -> None:
        margins = [int(part) << 20 for part in value.split(",")]
        every = margins * len(self.made.fit_params_target) if len(margins) == 1 else margins
        self.made.fit_params_target = every[: len(self.made.fit_params_target)]

    def set_lora_adapters(self, value: str) -> None:
        self._add_adapters([(path, 1.0) for path in _items(value)])

    def set_lora_scaled(self, value: str) -> None:
        pairs = [item.rpartition(":") for item in _items(value)]
        self._add_adapters([(path, float(scale)) for path, _, scale in pairs])

    def _add_adapters(self, pairs: Sequence[tuple[str, float]]) -> None:
        adapters = list(self.made.lora_adapters)
        for path, scale in pairs:
            adapter = self._package.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = path, scale
            adapters.append(adapter)
        self.made.lora_adapters = adapters


# Flags that take more than one assignment, by field.
_SPECIAL: Mapping[str, Callable[[_Parameters, Any], None]] = {
    "fit_params": _Parameters.set_fit_params,
    "model_alias": _Parameters.set_model_alias,
    "hostnames": _Parameters.set_hostnames,
    "reranking": _Parameters.set_reranking,
    "timeout": _Parameters.set_timeout,
    "reasoning": _Parameters.set_reasoning,
    "default_template_kwargs": _Parameters.set_default_template_kwargs,
    "chat_template_file": _Parameters.set_chat_template_file,
    "tensor_split": _Parameters.set_tensor_split,
    "fit_params_target": _Parameters.set_fit_params_target,
    "lora_adapters": _Parameters.set_lora_adapters,
    "lora_scaled": _Parameters.set_lora_scaled,
}


def _items(value: str) -> list[str]:
    """Separated by commas; quoted where they have some."""
    return next(csv.reader([value]))


def _prepare(package: Any, argv: Sequence[str]) -> Any:
    """The parameters. Raises BadArgument."""
    parameters = _Parameters(package)
    given = read_arguments(argv)
    made = parameters.made
    if not any(option.field == "n_parallel" and value != "-1" for option, value in given):
        parameters.put(n_parallel=_DEFAULT_SLOTS, kv_unified=True)
    for option, value in given:
        if (option.field, value) != ("n_parallel", "-1"):
            parameters.set(option, value)
    if key := os.environ.get(_API_KEY_VARIABLE):
        made.api_keys = [key]
    if made.embedding and made.n_batch > made.n_ubatch:
        made.n_batch = made.n_ubatch
    return made


def main(argv: Sequence[str]) -> int:
    """Serve until a signal ends the process; 1 if it can't."""
    if "--help" in argv:
        print("\n".join(", ".join((*option.names, *option.negative)) for option in read_options()))  # noqa: T201
        return 0
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, also while the library loads the model
    try:
        package = importlib.import_module("xllamacpp")
        server = package.Server(_prepare(package, argv))
    except BadArgument as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except ImportError as error:
        print(f"error: the package xllamacpp can't be loaded: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except RuntimeError as error:  # its log has the reason
        print(f"exiting: {error}", file=sys.stderr)  # noqa: T201
        return 1
    threading.Event().wait()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
