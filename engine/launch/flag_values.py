"""Readers of flags' values, for argparse, by kind: counts, lengths, seconds, ports, JSON objects …"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config import AdapterPath
from engine.core.adapter import problem_of_name, shown_name

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
_DTYPE_SYNONYMS = {"float": "float32", "half": "float16"}


def human_int(text: str) -> int:
    """A whole number, also `4k` (4000), `4K` (4096), `1.5G`, as in vLLM."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(value)


def model_len(text: str) -> int | None:
    if text in ("auto", "-1"):
        return None
    try:
        return human_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, such as 4096, 4k or 4K, or auto") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error


def fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def seconds(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 … 65535")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def adapter_path(text: str) -> AdapterPath:
    """`name=path`, or vLLM's JSON."""
    if text.lstrip().startswith("{"):
        given = json_object(text)
        name, path = given.get("name"), given.get("path")
    else:
        name, _, path = text.partition("=")
    if not (isinstance(name, str) and isinstance(path, str) and name and path):
        raise argparse.ArgumentTypeError(f'{text!r} is neither NAME=PATH nor {{"name": …, "path": …}}')
    if (problem := problem_of_name(name)) is not None:
        raise argparse.ArgumentTypeError(f"the adapter name {shown_name(name)} {problem}")
    return AdapterPath(name, Path(path))


def dtype(text: str) -> str:
    return _DTYPE_SYNONYMS.get(text, text)


# By a field's type, or its flag's `kind` (engine/config.py).
READERS: dict[str, Callable[[str], Any]] = {
    "Mapping[str, Any]": json_object,
    "Path": Path,
    "dtype": dtype,
    "fraction": fraction,
    "int": human_int,
    "integer": int,
    "length": model_len,
    "port": port,
    "seconds": seconds,
    "str": str,
    "tuple[str, ...]": str,
    "tuple[AdapterPath, ...]": adapter_path,
    "word": str.lower,
}
