"""Checks an engine's parameters before anything is started or stopped for them.

The embedded engine's flags are read from engine_flags.json, which is generated from its parser; values are
checked as the parser does. Names of vLLM's flags are checked only for the vLLM version of that table.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from instance_manager.backends.params import MASK, as_argument, is_secret
from instance_manager.errors import InvalidSpec

_TABLE = Path(__file__).with_name("engine_flags.json")
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)")
_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_MAX_ADAPTER_NAME_CHARS = 200
_NUMBERS = frozenset({"count", "length", "fraction"})  # kinds that vLLM parses as the embedded engine does


def with_switches(params: Mapping[str, Any]) -> dict[str, Any]:
    """The merged parameters; a quoted `"true"` or `"false"` of a switch is taken as it is meant."""
    flags = _table()["flags"]
    words = {"true": True, "false": False}
    return {
        name: words.get(value.lower(), value)
        if isinstance(value, str) and flags.get(_flag(name).removeprefix("no-"), {}).get("kind") == "switch"
        else value
        for name, value in params.items()
    }


def check_engine_flags(params: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    """Raise InvalidSpec for the first parameter that the embedded engine would refuse.

    `own`: parameters of the request or the model's entry; the others come from settings. `folder`: the
    engine's working directory.
    """
    flags = _table()["flags"]
    for name, value in params.items():
        entry = flags.get(_flag(name))
        problem = _unknown(name, flags) if entry is None else _problem(value, entry, folder)
        if problem is not None:
            raise _refusal(name, value, problem, own)


def check_vllm_flags(params: Mapping[str, Any], own: Mapping[str, Any], python: str) -> None:
    """Raise InvalidSpec for an invalid number or switch, and for a name that this vLLM version lacks."""
    table = _table()
    theirs = {name: entry for name, entry in table["flags"].items() if not entry.get("is_ours")}
    is_known = (vllm_version(python) or "").startswith(f"{table['vllm_version']}.")
    for name, value in params.items():
        entry = theirs.get(_flag(name).removeprefix("no-") if value is True else _flag(name))
        problem = None
        if entry is None:
            problem = _unknown(name, theirs) if is_known else None
        elif entry["kind"] in _NUMBERS or (entry["kind"] == "switch" and not isinstance(value, bool)):
            problem = _problem(value, entry, Path())
        if problem is not None:
            raise _refusal(name, value, problem, own)


def vllm_version(python: str) -> str | None:
    """The version of vLLM in an interpreter's environment, from file names alone; None if not found."""
    found = shutil.which(python)
    root = None if found is None else Path(found).absolute().parent.parent
    folders = [] if root is None else sorted(root.glob("lib/python3.*/site-packages/vllm-*.dist-info"))
    return folders[-1].name.split("-")[1].removesuffix(".dist") if folders else None


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _refusal(name: str, value: Any, problem: str, own: Mapping[str, Any]) -> InvalidSpec:
    shown = MASK if is_secret(name) else value if isinstance(value, str) else json.dumps(value, default=str)
    own_names = {key.replace("-", "_") for key in own}
    origin = "" if name.replace("-", "_") in own_names else ", set by VLLM_CONFIG or a VLLM_DEFAULT_… setting"
    return InvalidSpec(f"params.{name}={shown}{origin}: {problem}", param=f"params.{name}")


def _unknown(name: str, flags: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(_flag(name), flags, n=1, cutoff=0.7)
    hint = f"; did you mean {close[0].replace('-', '_')}?" if close else ""
    return f"the engine has no such flag{hint}"


def _problem(value: Any, entry: Mapping[str, Any], folder: Path) -> str | None:
    """Why the engine would refuse the value; None if it wouldn't."""
    if value == [] or value == ():
        return None  # it becomes no flag
    is_list = entry.get("is_list", False)
    if (entry["kind"] == "switch") != isinstance(value, bool):
        if entry["kind"] == "switch":
            return "must be true or false, without quotation marks"
        if not (value is True and entry.get("may_be_bare")):
            return "needs a value, which true and false are not"
    if value is True and is_list:
        texts = []
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > 1 and not is_list:
            return "must be one value, not a list"
        texts = [as_argument(item) for item in value]
    else:
        texts = [as_argument(value)]
    problems = (_read(text, entry, folder) for text in texts)
    if (problem := next((found for found in problems if found is not None), None)) is not None:
        return problem
    allowed = entry.get("allowed")
    if allowed is None or " ".join(texts) in allowed:
        return None
    possible = f" (possible: {', '.join(allowed)})" if any(allowed) else ""
    return f"can't be honoured: {entry['why']}{possible}"


def _read(text: str, entry: Mapping[str, Any], folder: Path) -> str | None:
    """The problem with one value, in its command-line form."""
    kind, choices = entry["kind"], entry.get("choices")
    if choices is not None:
        word = text.lower() if kind == "word" else text
        return None if word in choices else f"must be one of {', '.join(choices)}"
    if kind == "template":
        return _check_template(text, folder)
    return _READERS[kind](text) if kind in _READERS else None


def _check_count(text: str) -> str | None:
    match = _COUNT.fullmatch(text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    good = value >= 1 and value == int(value)
    return None if good else "must be a whole number above 0"


def _check_length(text: str) -> str | None:
    problem = None if text in ("auto", "-1") else _check_count(text)
    return None if problem is None else f"{problem}, such as 4096, 4k or 4K, or auto"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check_fraction(text: str) -> str | None:
    return None if 0 < _number(text) <= 1 else "must be a number above 0 and at most 1"


def _check_seconds(text: str) -> str | None:
    return None if 0 <= _number(text) < math.inf else "must be a number of seconds, 0 or more"


def _check_integer(text: str) -> str | None:
    try:
        int(text)
    except ValueError:
        return "must be a whole number"
    return None


def _check_object(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"must be a JSON object: {error}"
    return None if isinstance(value, dict) else "must be a JSON object"


def _check_adapter(text: str) -> str | None:
    if not text.lstrip().startswith("{"):
        given: Any = dict(zip(("name", "path"), text.split("=", 1), strict=False))
    elif (problem := _check_object(text)) is not None:
        return problem
    else:
        given = json.loads(text)
    if not all(isinstance(given.get(key), str) and given[key] for key in ("name", "path")):
        return "must be NAME=PATH, or an object with name and path"
    problem = problem_of_adapter_name(given["name"])
    return None if problem is None else f"the adapter name {given['name'][:200]!r} {problem}"


def problem_of_adapter_name(name: str) -> str | None:
    """A copy of the rule in engine/core/adapter.py; a test compares the two."""
    if not name.strip():
        return "is empty"
    if len(name) > _MAX_ADAPTER_NAME_CHARS:
        return f"has {len(name)} characters; {_MAX_ADAPTER_NAME_CHARS} are possible"
    if not name.isprintable() or name != name.strip():
        return "has line ends, control characters or spaces at an end"
    if ":" in name:
        return "has a colon, which separates the names in `model:adapter`"
    if any(part in ("", ".", "..") for part in re.split(r"[/\\]", name)):
        return "reads like a path; slashes may only separate parts of a name"
    return None


def _check_template(text: str, folder: Path) -> str | None:
    """A text with braces or line breaks is the template itself."""
    if re.search(r"[{}\n]", text) or Path(folder, text).is_file():
        return None
    return "there is no such file, and a template itself would have braces"


_READERS: Mapping[str, Callable[[str], str | None]] = {
    "count": _check_count,
    "length": _check_length,
    "fraction": _check_fraction,
    "seconds": _check_seconds,
    "integer": _check_integer,
    "object": _check_object,
    "adapter": _check_adapter,
}
