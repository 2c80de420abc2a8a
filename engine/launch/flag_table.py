"""The command line as a table of flags and values, for programs that start the engine but can't import it.

docs/engine_flags.py writes it where the manager reads it.
"""

from __future__ import annotations

import argparse
from typing import Any

from engine.launch import vllm_flags
from engine.launch.flag_parser import FOREIGN, build_parser
from engine.launch.flag_rules import RULES
from engine.launch.flag_values import adapter_path, fraction, human_int, json_object, model_len, seconds

VLLM_VERSION = "0.32"  # engine/launch/vllm_flags.py lists this version's flags

_KINDS: dict[Any, str] = {
    human_int: "count",
    model_len: "length",
    fraction: "fraction",
    seconds: "seconds",
    json_object: "object",
    int: "integer",
    adapter_path: "adapter",
    str.lower: "word",
}


def flag_table() -> dict[str, Any]:
    """By name without dashes: `kind` and, if any, `choices`, `is_list`, `allowed` with `why`.

    A kind is `switch`, or how a value is read. `allowed`: the only values of a vLLM flag that are supported
    here. `may_be_bare`: the list may be empty. `is_ours`: vLLM doesn't have the flag.
    """
    table: dict[str, Any] = {}
    for action in build_parser()._actions:
        for name in action.option_strings:
            if name.startswith("--") and not name.startswith("--no-") and action.dest != "help":
                table[name.removeprefix("--")] = _entry(action)
    for alias, name in vllm_flags.ALIASES.items():
        if alias.startswith("--") and name in table:
            table[alias.removeprefix("--")] = table[name]
    vllm = vllm_flags.SWITCHES | vllm_flags.VALUES | vllm_flags.LISTS | {a[2:] for a in vllm_flags.ALIASES}
    for name, entry in table.items():
        if name not in vllm:
            table[name] = {**entry, "is_ours": True}
    return {"vllm_version": VLLM_VERSION, "flags": dict(sorted(table.items()))}


def _entry(action: argparse.Action) -> dict[str, Any]:
    if isinstance(action, argparse.BooleanOptionalAction):
        entry: dict[str, Any] = {"kind": "switch"}
    else:
        entry = {"kind": "template" if action.dest == "chat_template" else _KINDS.get(action.type, "text")}
    if action.choices is not None:
        entry["choices"] = list(action.choices)
    if action.nargs in ("+", "*"):
        entry["is_list"] = True
        entry["may_be_bare"] = action.nargs == "*"
    rule = RULES.get(action.dest.removeprefix(FOREIGN)) if action.dest.startswith(FOREIGN) else None
    if rule is not None:
        entry |= {"allowed": sorted(rule.allowed), "why": rule.why}
    return entry
