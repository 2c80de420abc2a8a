"""The command line as a table, for those who start the engine and can't import it: what each flag takes.

docs/engine_flags.py writes it where the manager reads it.
"""

from __future__ import annotations

import argparse
from typing import Any

from engine.launch import flags, vllm_flags
from engine.launch.flag_rules import RULES

VLLM_VERSION = "0.32"  # the one whose flags engine/launch/vllm_flags.py lists

_KINDS = {
    flags._human_int: "count",
    flags._model_len: "length",
    flags._fraction: "fraction",
    flags._seconds: "seconds",
    flags._json_object: "object",
    int: "integer",
}


def flag_table() -> dict[str, Any]:
    """By name without dashes: `kind` and, where there are any, `choices`, `is_list`, `allowed` with `why`.

    A kind is `switch`, or what a value is read as. `allowed`: the only values of a flag of vLLM's that can be
    honoured here. `may_be_bare`: a list of none is one. `is_ours`: not known to vLLM.
    """
    table: dict[str, Any] = {}
    for action in flags.build_parser()._actions:
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
        kind = "text" if action.type is None else _KINDS.get(action.type, "text")
        if action.dest == "chat_template":
            kind = "template"
        entry = {"kind": kind}
    if action.choices is not None:
        entry["choices"] = list(action.choices)
        if action.type is str.lower:
            entry["kind"] = "word"
    if action.nargs in ("+", "*"):
        entry["is_list"] = True
        entry["may_be_bare"] = action.nargs == "*"
    rule = (
        RULES.get(action.dest.removeprefix(flags._FOREIGN))
        if action.dest.startswith(flags._FOREIGN)
        else None
    )
    if rule is not None:
        entry |= {"allowed": sorted(rule.allowed), "why": rule.why}
    return entry
