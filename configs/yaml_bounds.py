"""Limits on the size of a YAML text, checked while it is composed, before aliases multiply its size.

A node with aliases is one node in memory, but is visited once per alias when the tree is walked. So each
alias counts with everything below its node.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml.composer import Composer
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

MAX_DEPTH = 32  # nested mappings and lists
MAX_ENTRIES = 2000  # of one mapping or list, and thus of models
MAX_VALUES = 50_000  # keys and values of the whole text, with aliases expanded


class OutOfBounds(Exception):
    """The text is too large; `line` counts from 1."""

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
        self._sizes: dict[int, int] = {}  # by node id: the node and everything below it

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        line: int = self.parser.peek_event().start_mark.line + 1
        if parent is not None and len(parent.value) >= MAX_ENTRIES:
            raise OutOfBounds(f"exceeds the {MAX_ENTRIES} entries that a mapping or list may have", line)
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise OutOfBounds(f"is nested more than {MAX_DEPTH} deep", line)
        node: Node = super().compose_node(parent, index)
        self._depth -= 1
        size = self._size_of(node)
        self._num_values += 1 if id(node) not in self._sizes else size
        self._sizes[id(node)] = size
        if max(size, self._num_values) > MAX_VALUES:
            raise OutOfBounds(f"brings the total above {MAX_VALUES:,} values, with aliases expanded", line)
        return node

    def _size_of(self, node: Node) -> int:
        """Children are composed before their parents, except in a node that contains itself."""
        known = self._sizes.get(id(node))
        if known is not None:
            return known
        if isinstance(node, MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, SequenceNode) else []
        return 1 + sum(self._sizes.get(id(part), 1) for part in parts)
