"""How much a YAML text may say: checked as it is composed, before an alias is followed a thousandfold.

A node that is named by aliases is one node in memory, and as many as there are aliases to whoever walks the
tree. So each counts with all that is below it.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml.composer import Composer
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

MAX_DEPTH = 32  # mappings and lists within one another
MAX_ENTRIES = 2000  # of one mapping or list, so also models
MAX_VALUES = 50_000  # keys and values of the whole text, aliases followed


class OutOfBounds(Exception):
    """The text says too much; `line` counts from 1."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


class BoundedComposer(Composer):
    """Raises OutOfBounds."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self._depth = 0
        self._num_values = 0
        self._sizes: dict[int, int] = {}  # by the node's id: it, and all that is below it

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        line: int = self.parser.peek_event().start_mark.line + 1
        if parent is not None and len(parent.value) >= MAX_ENTRIES:
            raise OutOfBounds(
                f"is more than the {MAX_ENTRIES} entries that one mapping or list may have", line
            )
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise OutOfBounds(f"is nested more than {MAX_DEPTH} deep", line)
        node: Node = super().compose_node(parent, index)
        self._depth -= 1
        size = self._size_of(node)
        self._num_values += 1 if id(node) not in self._sizes else size
        self._sizes[id(node)] = size
        if max(size, self._num_values) > MAX_VALUES:
            raise OutOfBounds(f"makes more than {MAX_VALUES:,} values in all, aliases followed", line)
        return node

    def _size_of(self, node: Node) -> int:
        """Those below have been composed before it, but for one that stands in itself."""
        known = self._sizes.get(id(node))
        if known is not None:
            return known
        if isinstance(node, MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, SequenceNode) else []
        return 1 + sum(self._sizes.get(id(part), 1) for part in parts)
