"""The modules of a tree and the imports between them, read with `ast`; nothing is loaded.

The words are explained in docs/structure.py."""

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
        """Lines that are not blank, comment or docstring."""
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
        """(lines without decorators, name), methods and inner functions included."""
        found = (node for node in self.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        return [(len(_span(node)), node.name) for node in found]

    def imported(self) -> Iterator[str]:
        """Full names; of `from a import b` both `a` and `a.b`, since either may be the module."""
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
    """Of the packages and single modules of these names, as far as `root` has them."""
    found = (path for top in tops for path in [root / f"{top}.py", *sorted((root / top).rglob("*.py"))])
    return [Module(_name(path.relative_to(root)), path) for path in found if path.is_file()]


def _name(path: Path) -> str:
    return ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts)


class Layer(NamedTuple):
    rooms: frozenset[str]
    apart: bool  # they may not import each other


class Package:
    def __init__(self, name: str, modules: Iterable[Module], contracts: Iterable[Mapping[str, Any]]) -> None:
        self.name = name
        self.modules = [module for module in modules if f"{module.name}.".startswith(f"{name}.")]
        self.rooms = {room for module in self.modules if (room := self._room(module.name))}
        self.arrows: dict[str, set[str]] = {room: set() for room in self.rooms}
        for module in self.modules:
            if room := self._room(module.name):
                self.arrows[room] |= self.rooms.intersection(map(self._room, module.imported())) - {room}
        self.orders = [order for contract in contracts if (order := self._order(contract))]
        self.ordered = {room for order in self.orders for layer in order for room in layer.rooms}

    def _room(self, name: str) -> str:
        """The room that a module is in; empty for `__init__`, `__main__` and what is outside this package."""
        inside = name.startswith(f"{self.name}.")
        room = name.removeprefix(f"{self.name}.").split(".")[0] if inside else ""
        return "" if room == "__main__" else room

    def _order(self, contract: Mapping[str, Any]) -> list[Layer]:
        """The contract's layers, highest first; none if it isn't about this package's rooms."""
        prefix = f"{self.name}."
        layers = []
        for text in contract["layers"]:
            names = [name.strip(" ()") for name in text.replace("|", ":").split(":")]
            if self.name not in contract.get("containers", ()):
                names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            layers.append(Layer(frozenset(self.rooms.intersection(names)), "|" in text))
        return [layer for layer in layers if layer.rooms]

    @cached_property
    def upward(self) -> list[str]:
        arrows = [(here, there) for here in sorted(self.rooms) for there in sorted(self.arrows[here])]
        return [f"{a} -> {b}" for a, b in arrows if any(_forbids(order, a, b) for order in self.orders)]

    @cached_property
    def _reached(self) -> dict[str, set[str]]:
        """From each room along the arrows; a room reaches itself if it is part of a circle."""
        reached: dict[str, set[str]] = {}
        for room in self.rooms:
            seen = reached[room] = set()
            ahead = list(self.arrows[room])
            while ahead:
                if (there := ahead.pop()) not in seen:
                    seen.add(there)
                    ahead += self.arrows[there]
        return reached

    @cached_property
    def circles(self) -> list[list[str]]:
        return sorted(map(sorted, filter(None, {self._circle(room) for room in self.rooms})))

    def _circle(self, room: str) -> frozenset[str]:
        return frozenset(there for there in self._reached[room] if room in self._reached[there])

    @cached_property
    def floors(self) -> int:
        @cache
        def floor(room: str) -> int:
            circle = self._circle(room)
            return (len(circle) or 1) + max(map(floor, self._reached[room] - circle), default=0)

        return max(map(floor, self.rooms), default=0)


def _forbids(order: Sequence[Layer], here: str, there: str) -> bool:
    level = {room: number for number, layer in enumerate(order) for room in layer.rooms}
    if here not in level or there not in level:
        return False
    return level[there] < level[here] or (level[there] == level[here] and order[level[here]].apart)
