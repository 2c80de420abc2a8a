"""Merges several programs' metrics into one page, in Prometheus's text format (0.0.4).

The input is whatever engines print. The output is valid: invalid lines are left out and counted, each family
occurs once with one HELP and one TYPE, and no two samples have the same name and labels.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TYPES = frozenset({"counter", "gauge", "histogram", "summary", "untyped"})
_PARTS = {"_bucket": ("histogram",), "_sum": ("histogram", "summary"), "_count": ("histogram", "summary")}
_OWN_PREFIX = "berth_"  # reserved for Berth; an engine's sample could pass for Berth's

# A computing thread delays the event loop by 5 ms at a time, so it yields now and then.
_PAUSE_EVERY = 200  # lines, which take less than a millisecond
_PAUSE_S = 20e-6

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_PLAIN = r'[^"\\\x00-\x08\n-\x1f\x7f]*'
_LABEL = rf'([a-zA-Z_][a-zA-Z0-9_]*)="({_PLAIN}(?:\\[\\"n]{_PLAIN})*)"'
_UNGROUPED = _LABEL.replace("([", "(?:[")
_DIGITS = "[0-9]{1,40}"  # `\\d` would match digits of all scripts
_NUMBER = rf"(?:{_DIGITS}(?:\.[0-9]{{0,40}})?|\.{_DIGITS})(?:[eE][+-]?[0-9]{{1,4}})?"
_VALUE = rf"[+-]?(?:{_NUMBER}|[iI]nf|NaN)"
_BLOCK = rf"\{{((?:{_UNGROUPED}(?:,[ \t]*{_UNGROUPED})*,?)?)\}}"
_SAMPLE_LINE = re.compile(rf"({_NAME})(?:{_BLOCK})?[ \t]+({_VALUE})(?:[ \t]+-?[0-9]{{1,20}})?")
_COMMENT_LINE = re.compile(rf"#[ \t]+(HELP|TYPE)[ \t]+({_NAME})(?:[ \t]+(.*))?")
_LABELS = re.compile(_LABEL)
_MAX_LINE = 16 * 1024  # characters
_NUMERIC_LABELS = {"histogram": "le", "summary": "quantile"}
_BACKSLASH = re.compile(r"\\([\\n]?)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def escaped(value: str) -> str:
    """A label's value, escaped for use between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@dataclass(slots=True)
class _Family:
    type: str
    help: str = ""
    samples: dict[str, str] = field(default_factory=dict)  # value by name and labels


class Exposition:
    """Pages are added one by one and rendered together."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}
        self._owners: dict[str, str] = {}  # the family that a sample's name belongs to

    def add_own(self, text: str) -> None:
        """Add Berth's own page unchanged, including families without samples; call it first."""
        self._add(text, {}, is_own=True)

    def add(self, text: str, labels: Mapping[str, str]) -> int:
        """Add another program's page, each sample with `labels`; returns the number of lines left out.

        A sample's own label of the same name is renamed to `exported_…`, as Prometheus does.
        """
        return self._add(text, labels, is_own=False)

    def render(self) -> str:
        lines: list[str] = []
        for name, family in self._families.items():
            if family.samples or name.startswith(_OWN_PREFIX):
                if family.help:
                    lines.append(f"# HELP {name} {family.help}")
                lines.append(f"# TYPE {name} {family.type}")
                lines += [f"{sample} {value}" for sample, value in family.samples.items()]
        return "".join(f"{line}\n" for line in lines)

    def _add(self, text: str, labels: Mapping[str, str], *, is_own: bool) -> int:
        added = [f'{name}="{escaped(value)}"' for name, value in labels.items()]
        types: dict[str, str] = {}  # of this page
        helps: dict[str, str] = {}
        left_out = 0
        for number, line in enumerate(text.split("\n"), start=1):
            if number % _PAUSE_EVERY == 0:
                time.sleep(_PAUSE_S)
            line = line.strip(" \t\r")
            if not line:
                continue
            if line[0] == "#":
                _read_comment(line[:_MAX_LINE], types, helps)
                continue
            found = _SAMPLE_LINE.fullmatch(line) if len(line) <= _MAX_LINE else None
            if found is None or not _is_in_range(found[3]):
                left_out += 1
                continue
            name, block, value = found.groups()
            family = None if name.startswith(_OWN_PREFIX) and not is_own else self._family(name, types, helps)
            own = _relabelled(block, labels, "" if family is None else family.type) if block else []
            if family is None or own is None:
                left_out += 1
                continue
            both = ",".join([*added, *own])
            sample = f"{name}{{{both}}}" if both else name
            if sample in family.samples:
                left_out += 1
                continue
            family.samples[sample] = value
        if is_own:
            for name, kind in types.items():
                self._families.setdefault(name, _Family(kind, helps.get(name, "")))
        return left_out

    def _family(self, sample: str, types: Mapping[str, str], helps: Mapping[str, str]) -> _Family | None:
        """The family of a sample; None if its name is already used for another family."""
        name = _family_name(sample, types)
        kind = types.get(name, "untyped")
        if self._owners.setdefault(sample, name) != name or (kind == "histogram" and sample == name):
            return None
        family = self._families.setdefault(name, _Family(kind, helps.get(name, "")))
        return family if family.type == kind else None


def _family_name(sample: str, types: Mapping[str, str]) -> str:
    if sample in types:
        return sample
    for suffix, kinds in _PARTS.items():
        base = sample.removesuffix(suffix)
        if base != sample and types.get(base) in kinds:
            return base
    return sample


def _read_comment(line: str, types: dict[str, str], helps: dict[str, str]) -> None:
    """Read a HELP or TYPE line; the first one of a name counts."""
    found = _COMMENT_LINE.fullmatch(line)
    if found is None:
        return
    what, name, rest = found.groups()
    if what == "HELP":
        helps.setdefault(name, _plain_help(rest or ""))
    else:
        types.setdefault(name, rest if rest in _TYPES else "untyped")


def _plain_help(text: str) -> str:
    """Valid text for a HELP line: backslashes only in escapes, no control characters."""
    return _CONTROL.sub(" ", _BACKSLASH.sub(lambda found: found[0] if found[1] else r"\\", text))


def _is_in_range(value: str) -> bool:
    """Whether the value fits a double: parsers of the page reject larger ones."""
    return "n" in value.lower() or math.isfinite(float(value))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return "_" not in value and value.isascii()


def _relabelled(block: str, taken: Mapping[str, str], kind: str) -> list[str] | None:
    """A sample's own labels, renamed if in `taken`; None if a name is reserved or occurs twice.

    `kind` is its family's type: labels for bounds and quantiles must be numbers.
    """
    numeric = _NUMERIC_LABELS.get(kind)
    if any(name == numeric and not _is_number(value) for name, value in _LABELS.findall(block)):
        return None
    pairs = [(f"exported_{k}" if k in taken else k, v) for k, v in _LABELS.findall(block)]
    names = {name for name, _ in pairs}
    if len(names) < len(pairs) or any(name.startswith("__") for name in names):
        return None
    return [f'{name}="{value}"' for name, value in pairs]
