"""Measures how the code is laid out: `python -m docs.structure [--check] [--classes] [ROOT]`.

A package's rooms are the modules and subpackages at its top level. An arrow is an import from one room to
another, wherever it stands in a file. Floors are the rooms on the longest chain of arrows; a circle of rooms
that import each other counts with all of them. An arrow is upward if a `layers` contract in pyproject.toml
forbids it, whatever the contract ignores; the rooms that such contracts name are ordered."""

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
    "cli",
)
PROCESSES = {
    "berth": ("app", "api", "instance_manager", "composition", "configs", "log_output"),
    "engine": ("engine",),
    "cli": ("cli",),
}

MAX_ROOMS = {"instance_manager": 16, "api": 10, "engine": 12, "engine.server": 8}
MAX_FILE_LINES = 320
MAX_APP_LINES = 200
MAX_CODE_LINES = 41_500
LONG_FILE = 300
LONG_FUNCTION = 50

_HEAD = ("package", "files", "lines", "code", "rooms", "floors", "arrows", "upward", "ordered", "circles")


class Target(NamedTuple):
    name: str
    figure: int | None  # None: no contract says what is up
    most: int

    @property
    def met(self) -> bool:
        return self.figure is not None and self.figure <= self.most


class House:
    def __init__(self, root: Path) -> None:
        self.modules = read_modules(root, dict.fromkeys(name.split(".")[0] for name in PACKAGES))
        contracts = _layers_contracts(root / "pyproject.toml")
        self.packages = {name: Package(name, self.modules, contracts) for name in PACKAGES}
        self.lines = sum(module.lines for module in self.modules)
        self.code = sum(module.code for module in self.modules)
        self.long_files = _longest((m.lines, m.name) for m in self.modules if m.lines > LONG_FILE)
        functions = ((lines, f"{m.name}: {name}") for m in self.modules for lines, name in m.functions)
        self.long_functions = _longest(function for function in functions if function[0] > LONG_FUNCTION)

    def doubled_classes(self) -> Iterator[tuple[str, str, list[str]]]:
        """(process, class name, modules) of each name that a process defines more than once."""
        for process, tops in PROCESSES.items():
            places = defaultdict(list)
            for module in self.modules:
                for name in module.classes if module.name.split(".")[0] in tops else ():
                    places[name].append(module.name)
            yield from ((process, name, found) for name, found in sorted(places.items()) if len(found) > 1)

    def targets(self) -> Iterator[Target]:
        for name, most in MAX_ROOMS.items():
            package = self.packages[name]
            yield Target(f"{name}: rooms", len(package.rooms), most)
            yield Target(f"{name}: arrows upward", len(package.upward) if package.orders else None, 0)
            yield Target(f"{name}: rooms without an order", len(package.rooms - package.ordered), 0)
        yield Target("longest file: lines", max((m.lines for m in self.modules), default=0), MAX_FILE_LINES)
        yield Target("app.py: lines", sum(m.lines for m in self.packages["app"].modules), MAX_APP_LINES)
        yield Target("lines of code", self.code, MAX_CODE_LINES)


def _layers_contracts(config: Path) -> list[Mapping[str, Any]]:
    tools = tomllib.loads(config.read_text(encoding="utf-8")).get("tool", {}) if config.is_file() else {}
    contracts = tools.get("importlinter", {}).get("contracts", [])
    return [contract for contract in contracts if contract["type"] == "layers"]


def _longest(found: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(found, key=lambda one: (-one[0], one[1]))


def report(house: House, *, classes: bool = False) -> Iterator[str]:
    yield from _table([_HEAD, *map(_row, house.packages.values())])
    yield f"\nWithout tests: {house.lines} lines, {house.code} of code (not blank, comment or docstring)"
    for name, package in house.packages.items():
        yield from (f"{name}: circle of {', '.join(circle)}" for circle in package.circles)
        yield from (f"{name}: upward {arrow}" for arrow in package.upward)
    above = sum(lines > MAX_FILE_LINES for lines, _ in house.long_files)
    yield f"\nFiles over {LONG_FILE} lines: {len(house.long_files)}, over {MAX_FILE_LINES} (!): {above}"
    for lines, name in house.long_files:
        yield f"{lines:6} {'!' if lines > MAX_FILE_LINES else ' '} {name}"
    yield f"\nFunctions over {LONG_FUNCTION} lines: {len(house.long_functions)}"
    yield from (f"{lines:6}   {name}" for lines, name in house.long_functions)
    doubled = list(house.doubled_classes())
    yield f"\nClass names with several definitions in one process: {len(doubled)}"
    if classes:
        yield from (f"{process:>8} {name}: {', '.join(places)}" for process, name, places in doubled)
    yield "\nTargets"
    yield from _table([_target_row(target) for target in house.targets()])


def _row(package: Package) -> tuple[str, ...]:
    sizes = len(package.modules), sum(m.lines for m in package.modules), sum(m.code for m in package.modules)
    graph = len(package.rooms), package.floors, sum(map(len, package.arrows.values()))
    order = (len(package.upward), len(package.ordered)) if package.orders else ("-", "-")
    name = "app.py" if package.name == "app" else package.name
    return (name, *map(str, (*sizes, *graph, *order, len(package.circles))))


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
        "python -m docs.structure", description="Measure how the code is laid out."
    )
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="the tree to measure (this one)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--classes", action="store_true", help="list class names with several definitions")
    asked = parser.parse_args(arguments)
    house = House(asked.root)
    sys.stdout.writelines(f"{line}\n" for line in report(house, classes=asked.classes))
    return int(asked.check and not all(target.met for target in house.targets()))


if __name__ == "__main__":
    sys.exit(main())
