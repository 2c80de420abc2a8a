"""Measures the structure of the code: `python -m docs.structure [--check] [--classes] [ROOT]`.

A package's members are its top-level modules and subpackages. A dependency is an import of one member by
another, anywhere in a file. The depth is the number of members on the longest chain of dependencies; all
members of a cycle count. A dependency is a violation if a `layers` contract in pyproject.toml forbids it,
even if the contract ignores it; members named in such contracts are ordered."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docs.import_graph import Package, read_modules

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "app",
    "api",
    "instance_manager",
    "engine",
    "engine.server",
    "composition",
    "configs",
    "log_output",
    "host_limits",
    "cli",
)
PROCESSES = {
    "berth": ("app", "api", "instance_manager", "composition", "configs", "log_output", "host_limits"),
    "engine": ("engine", "host_limits"),
    "cli": ("cli",),
}

MAX_MEMBERS = {"instance_manager": 16, "api": 10, "engine": 12, "engine.server": 8}
MAX_FILE_LINES = 320
MAX_APP_LINES = 200
MAX_CODE_LINES = 41_500
LONG_FILE = 300
LONG_FUNCTION = 50

_HEAD = (
    "package",
    "files",
    "lines",
    "code",
    "members",
    "depth",
    "dependencies",
    "violations",
    "ordered",
    "cycles",
)


class Target(NamedTuple):
    name: str
    figure: int | None  # None: there is no contract
    most: int

    @property
    def met(self) -> bool:
        return self.figure is not None and self.figure <= self.most


class Codebase:
    def __init__(self, root: Path) -> None:
        self.modules = read_modules(root, dict.fromkeys(name.split(".")[0] for name in PACKAGES))
        contracts = _layers_contracts(root / "pyproject.toml")
        self.packages = {name: Package(name, self.modules, contracts) for name in PACKAGES}
        self.lines = sum(module.lines for module in self.modules)
        self.code = sum(module.code for module in self.modules)
        self.long_files = _longest((m.lines, m.name) for m in self.modules if m.lines > LONG_FILE)
        functions = ((lines, f"{m.name}: {name}") for m in self.modules for lines, name in m.functions)
        self.long_functions = _longest(function for function in functions if function[0] > LONG_FUNCTION)

    def duplicate_classes(self) -> Iterator[tuple[str, str, list[str]]]:
        """(process, class name, modules) of each class name with several definitions in a process."""
        for process, tops in PROCESSES.items():
            places = defaultdict(list)
            for module in self.modules:
                for name in module.classes if module.name.split(".")[0] in tops else ():
                    places[name].append(module.name)
            yield from ((process, name, found) for name, found in sorted(places.items()) if len(found) > 1)

    def targets(self) -> Iterator[Target]:
        for name, most in MAX_MEMBERS.items():
            package = self.packages[name]
            yield Target(f"{name}: members", len(package.members), most)
            yield Target(f"{name}: violations", len(package.violations) if package.orders else None, 0)
            yield Target(f"{name}: members without an order", len(package.members - package.ordered), 0)
        yield Target("longest file: lines", max((m.lines for m in self.modules), default=0), MAX_FILE_LINES)
        yield Target("app.py: lines", sum(m.lines for m in self.packages["app"].modules), MAX_APP_LINES)
        yield Target("lines of code", self.code, MAX_CODE_LINES)


def _layers_contracts(config: Path) -> list[Mapping[str, Any]]:
    tools = tomllib.loads(config.read_text(encoding="utf-8")).get("tool", {}) if config.is_file() else {}
    contracts = tools.get("importlinter", {}).get("contracts", [])
    return [contract for contract in contracts if contract["type"] == "layers"]


def _longest(found: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(found, key=lambda entry: (-entry[0], entry[1]))


def report(codebase: Codebase, *, classes: bool = False) -> Iterator[str]:
    yield from _table([_HEAD, *map(_row, codebase.packages.values())])
    yield f"\nWithout tests: {codebase.lines} lines, {codebase.code} of code (not blank, comment, docstring)"
    for name, package in codebase.packages.items():
        yield from (f"{name}: cycle of {', '.join(cycle)}" for cycle in package.cycles)
        yield from (f"{name}: violation {dependency}" for dependency in package.violations)
    above = sum(lines > MAX_FILE_LINES for lines, _ in codebase.long_files)
    yield f"\nFiles over {LONG_FILE} lines: {len(codebase.long_files)}, over {MAX_FILE_LINES} (!): {above}"
    for lines, name in codebase.long_files:
        yield f"{lines:6} {'!' if lines > MAX_FILE_LINES else ' '} {name}"
    yield f"\nFunctions over {LONG_FUNCTION} lines: {len(codebase.long_functions)}"
    yield from (f"{lines:6}   {name}" for lines, name in codebase.long_functions)
    duplicates = list(codebase.duplicate_classes())
    yield f"\nClass names with several definitions in one process: {len(duplicates)}"
    if classes:
        yield from (f"{process:>8} {name}: {', '.join(places)}" for process, name, places in duplicates)
    yield "\nTargets"
    yield from _table([_target_row(target) for target in codebase.targets()])


def _row(package: Package) -> tuple[str, ...]:
    sizes = len(package.modules), sum(m.lines for m in package.modules), sum(m.code for m in package.modules)
    graph = len(package.members), package.depth, sum(map(len, package.dependencies.values()))
    order = (len(package.violations), len(package.ordered)) if package.orders else ("-", "-")
    name = "app.py" if package.name == "app" else package.name
    return (name, *map(str, (*sizes, *graph, *order, len(package.cycles))))


def _target_row(target: Target) -> tuple[str, ...]:
    figure = "-" if target.figure is None else str(target.figure)
    return target.name, figure, f"<= {target.most}", "met" if target.met else "MISSED"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m docs.structure", description="Measure the structure of the code."
    )
    parser.add_argument(
        "root", nargs="?", type=Path, default=ROOT, help="the tree to measure (default: this one)"
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    parser.add_argument("--classes", action="store_true", help="list class names with several definitions")
    options = parser.parse_args(arguments)
    codebase = Codebase(options.root)
    sys.stdout.writelines(f"{line}\n" for line in report(codebase, classes=options.classes))
    return int(options.check and not all(target.met for target in codebase.targets()))


if __name__ == "__main__":
    sys.exit(main())
