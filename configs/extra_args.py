"""Turns flags in command-line form into named parameters. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_FLAG = re.compile(r"--([A-Za-z][A-Za-z0-9_-]*)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-[0-9.]+(?:[eE][-+]?[0-9]+)?")


def parse_extra_args(value: Any) -> dict[str, Any]:
    """`["--max-num-seqs", 8, "--enforce-eager"]` or a mapping → `{"max_num_seqs": 8, "enforce_eager": True}`.

    Several values after a flag become a list. Raises ValueError for invalid flags.
    """
    if isinstance(value, Mapping):
        return _from_pairs([(str(name), item) for name, item in value.items()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _from_pairs(_pairs(value))
    raise ValueError("must be a list such as [--max-num-seqs, 8] or a mapping such as {max_num_seqs: 8}")


def _pairs(arguments: Sequence[Any]) -> list[tuple[str, Any]]:
    values: list[tuple[str, list[Any]]] = []
    for argument in arguments:
        if isinstance(argument, str) and argument.startswith("-") and not _NUMBER.fullmatch(argument):
            flag = _FLAG.fullmatch(argument)
            if flag is None:
                raise ValueError(f"{argument!r} isn't a long flag; write it as --name or --name=value")
            values.append((flag[1], [] if flag[2] is None else [flag[2]]))
        elif not values:
            raise ValueError(f"{argument!r} comes before any flag; a list begins with --name")
        elif isinstance(argument, str | int | float):
            values[-1][1].append(argument)
        else:
            raise ValueError(f"{argument!r} isn't a valid argument; use text or numbers")
    return [(name, items[0] if len(items) == 1 else items or True) for name, items in values]


def _from_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, value in pairs:
        flag = _FLAG.fullmatch(name if name.startswith("--") else f"--{name}")
        if flag is None or flag[2] is not None:
            raise ValueError(
                f"{name!r} isn't a valid flag name: letters, digits, '_' and '-', a letter first"
            )
        key = flag[1].replace("-", "_")
        if key in params:
            raise ValueError(f"--{flag[1]} is given twice; give it once with all its values")
        params[key] = value
    return params
