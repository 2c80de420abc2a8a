"""The modules of a tree and their imports, read with `ast`; nothing is imported.

docs/structure.py defines the terms."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_NOT_CODE = {tokenize.COMMENT, *_LAYOUT}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @cached_property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @cached_property
    def code(self) -> int:
        """Number of lines that are not blank, comment or docstring."""
        held: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in _NOT_CODE:
                held.update(range(token.start[0], token.end[0] + 1))
        for node in self.nodes:
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                held.difference_update(_span(node.body[0]))
        return len(held)

    @cached_property
    def classes(self) -> list[str]:
        return [node.name for node in self.nodes if isinstance(node, ast.ClassDef)]

    @cached_property
    def functions(self) -> list[tuple[int, str]]:
        """(lines without decorators, name), including methods and nested functions."""
        found = (node for node in self.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        return [(len(_span(node)), node.name) for node in found]

    def imported(self) -> Iterator[str]:
        """Full names. `from a import b` yields `a` and `a.b`, since either may be the module."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                yield from (base, *(f"{base}.{alias.name}" for alias in node.names))

    def _base(self, node: ast.ImportFrom) -> str:
        parts = self.name.split(".") + ["__init__"] * (self.path.name == "__init__.py")
        return ".".join([*(parts[: -node.level] if node.level else []), *filter(None, [node.module])])


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def read_modules(root: Path, tops: Iterable[str]) -> list[Module]:
    """The modules of these packages and top-level modules that exist in `root`."""
    found = (path for top in tops for path in [root / f"{top}.py", *sorted((root / top).rglob("*.py"))])
    return [Module(_name(path.relative_to(root)), path) for path in found if path.is_file()]


def _name(path: Path) -> str:
    return ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts)


class Layer(NamedTuple):
    members: frozenset[str]
    independent: bool  # its members may not import each other


class Package:
    def __init__(self, name: str, modules: Iterable[Module], contracts: Iterable[Mapping[str, Any]]) -> None:
        self.name = name
        self.modules = [module for module in modules if f"{module.name}.".startswith(f"{name}.")]
        self.members = {member for module in self.modules if (member := self._member_of(module.name))}
        self.dependencies: dict[str, set[str]] = {member: set() for member in self.members}
        for module in self.modules:
            if member := self._member_of(module.name):
                self.dependencies[member] |= self.members.intersection(
                    map(self._member_of, module.imported())
                ) - {member}
        self.orders = [order for contract in contracts if (order := self._order(contract))]
        self.ordered = {member for order in self.orders for layer in order for member in layer.members}

    def _member_of(self, name: str) -> str:
        """The member that a module belongs to; empty for `__init__`, `__main__` and other packages."""
        inside = name.startswith(f"{self.name}.")
        member = name.removeprefix(f"{self.name}.").split(".")[0] if inside else ""
        return "" if member == "__main__" else member

    def _order(self, contract: Mapping[str, Any]) -> list[Layer]:
        """The contract's layers, highest first; empty if it does not cover this package's members."""
        prefix = f"{self.name}."
        layers = []
        for text in contract["layers"]:
            names = [name.strip(" ()") for name in text.replace("|", ":").split(":")]
            if self.name not in contract.get("containers", ()):
                names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            layers.append(Layer(frozenset(self.members.intersection(names)), "|" in text))
        return [layer for layer in layers if layer.members]

    @cached_property
    def violations(self) -> list[str]:
        dependencies = [
            (source, target)
            for source in sorted(self.members)
            for target in sorted(self.dependencies[source])
        ]
        return [f"{a} -> {b}" for a, b in dependencies if any(_forbids(order, a, b) for order in self.orders)]

    @cached_property
    def _reached(self) -> dict[str, set[str]]:
        """The members reachable from each member; one reaches itself if it is part of a cycle."""
        reached: dict[str, set[str]] = {}
        for member in self.members:
            seen = reached[member] = set()
            ahead = list(self.dependencies[member])
            while ahead:
                if (target := ahead.pop()) not in seen:
                    seen.add(target)
                    ahead += self.dependencies[target]
        return reached

    @cached_property
    def cycles(self) -> list[list[str]]:
        return sorted(map(sorted, filter(None, {self._cycle_of(member) for member in self.members})))

    def _cycle_of(self, member: str) -> frozenset[str]:
        return frozenset(target for target in self._reached[member] if member in self._reached[target])

    @cached_property
    def depth(self) -> int:
        @cache
        def depth_of(member: str) -> int:
            cycle = self._cycle_of(member)
            return (len(cycle) or 1) + max(map(depth_of, self._reached[member] - cycle), default=0)

        return max(map(depth_of, self.members), default=0)


def _forbids(order: Sequence[Layer], source: str, target: str) -> bool:
    level = {member: number for number, layer in enumerate(order) for member in layer.members}
    if source not in level or target not in level:
        return False
    return level[target] < level[source] or (
        level[target] == level[source] and order[level[source]].independent
    )
