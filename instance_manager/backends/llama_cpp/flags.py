"""Checks parameters against a llama-server's flags, and writes them as its command line has them. Pure.

A flag may be named by any of its spellings: `n_gpu_layers`, `gpu_layers` or `ngl`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from instance_manager.backends.llama_cpp.help_text import CHOICE, NUMBER, PAIR, SWITCH, Flag
from instance_manager.backends.llama_cpp.in_process_server import read_options
from instance_manager.backends.params import MASK, as_argument, is_secret
from instance_manager.errors import InvalidSpec

_TABLE = Path(__file__).with_name("flags.json")
_TRUE, _FALSE = ("on", "enabled", "true", "1"), ("off", "disabled", "false", "0")


class FlagSet:
    """The flags of one program. `is_complete`: it has no others, so that an unknown name is a mistake."""

    def __init__(self, flags: Iterable[Flag], *, is_complete: bool) -> None:
        self._flags: dict[str, Flag] = {}
        self._negative: dict[str, Flag] = {}
        self._is_complete = is_complete
        for flag in flags:
            self._flags |= {name.lstrip("-"): flag for name in flag.names}
            self._negative |= {name.lstrip("-"): flag for name in flag.negative}

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise InvalidSpec for the first parameter that the program would refuse, or that is given twice."""
        seen: dict[Flag, str] = {}
        for name, value in params.items():
            if (problem := self._problem(name, value)) is not None:
                shown = MASK if is_secret(name) else json.dumps(value, default=str)
                raise InvalidSpec(f"params.{name}={shown}: {problem}", param=f"params.{name}")
            flag = self._flags.get(_kebab(name)) or self._negative.get(_kebab(name))
            if flag is not None and (other := seen.setdefault(flag, name)) != name:
                message = f"params.{name} and params.{other} are the same flag; keep one"
                raise InvalidSpec(message, param=f"params.{name}")

    def to_argv(self, params: Mapping[str, Any]) -> list[str]:
        """Arguments for checked parameters, in their order. Lists are separated by commas."""
        return [part for name, value in params.items() for part in self._arguments(_kebab(name), value)]

    def may_have(self, name: str) -> bool:
        """Whether the program has this flag, as far as is known."""
        return not self._is_complete or _kebab(name) in self._flags

    def _problem(self, name: str, value: Any) -> str | None:
        kebab = _kebab(name)
        flag = self._flags.get(kebab)
        if flag is not None and not (value is False and f"no-{kebab}" in self._negative):
            return _problem_of_value(flag, value)
        if flag is not None or kebab in self._negative:
            return None if isinstance(value, bool) else "must be true or false"
        return self._unknown(kebab) if self._is_complete else None

    def _unknown(self, kebab: str) -> str:
        close = difflib.get_close_matches(kebab, [*self._flags, *self._negative], n=1, cutoff=0.7)
        hint = f"; did you mean {close[0].replace('-', '_')}?" if close else ""
        return f"llama-server has no such flag{hint}"

    def _arguments(self, kebab: str, value: Any) -> list[str]:
        flag = self._flags.get(kebab)
        if kebab in self._negative:
            negated = self._negative[kebab]
            return [_spelled(kebab, negated.negative) if value else negated.names[-1]]
        if value is False and f"no-{kebab}" in self._negative:
            return [f"--no-{kebab}"]
        spelled = f"--{kebab}" if flag is None else _spelled(kebab, flag.names)
        if flag is not None and flag.kind == CHOICE and isinstance(value, bool):
            return [spelled, "on" if value else "off"]
        if isinstance(value, bool):
            return [spelled] if value else []
        if flag is not None and flag.kind == PAIR:
            return [spelled, *map(as_argument, value)]
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [spelled, ",".join(_quoted(as_argument(item)) for item in value)] if value else []
        return [spelled, as_argument(value)]


@cache
def in_process_flags() -> list[Flag]:
    """Those of the script that runs llama.cpp's server out of a Python package."""
    kinds = {"integer": NUMBER}
    return [
        Flag(one.names, kinds.get(one.kind, one.kind), one.negative, tuple(one.words))
        for one in read_options()
    ]


@cache
def table() -> list[Flag]:
    """The flags of the version that the table was written from: `build` in the file."""
    return [Flag.from_json(entry) for entry in _read_table()["flags"]]


@cache
def _read_table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _spelled(kebab: str, names: Sequence[str]) -> str:
    """With the dashes that it has."""
    return next(name for name in names if name.lstrip("-") == kebab)


def _quoted(item: str) -> str:
    return f'"{item}"' if "," in item else item


def _problem_of_value(flag: Flag, value: Any) -> str | None:
    """Why the program would refuse the value, or misread it."""
    if flag.kind == SWITCH:
        return None if isinstance(value, bool) else "must be true or false"
    if flag.kind == CHOICE:
        return _problem_of_choice(flag.words, value)
    if isinstance(value, bool):
        return "needs a value, which true and false are not"
    if flag.kind == PAIR:
        is_pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
        return None if is_pair else "must be a list of two numbers"
    if flag.kind == NUMBER:
        return _problem_of_number(flag.words, value)
    return None


def _problem_of_choice(words: Sequence[str], value: Any) -> str | None:
    also = (*_TRUE, *_FALSE) if "on" in words else ()
    if as_argument(value) in (*words, *also):
        return None
    return f"must be one of {', '.join(words)}"


def _problem_of_number(words: Sequence[str], value: Any) -> str | None:
    """It would read `4k` as 4."""
    text = as_argument(value)
    try:
        if math.isfinite(float(text)):
            return None
    except ValueError:
        if text in words:
            return None
    return f"must be a number{''.join(f', or {word}' for word in words)}"
