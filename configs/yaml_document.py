"""A YAML file as plain data, with the line of each key. Knows nothing of what the keys mean.

YAML 1.2 restricted to JSON's types: no tags, no dates, no numeric keys. Mistakes are reported by line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from configs.yaml_bounds import BoundedComposer, OutOfBounds

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null"))
_MERGE = _TAG + "merge"


class YamlMistake(Exception):
    """Invalid or unsupported YAML; `line` counts from 1."""

    def __init__(self, problem: str, line: int = 1, keys: KeyPath = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.keys = keys


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A text's data and their lines."""

    data: Any  # dicts, lists, str, int, float, bool, None
    root: Node | None  # None: only comments

    def find(self, keys: Sequence[str | int]) -> tuple[KeyPath, int]:
        """The longest prefix of `keys` that is in the text, and the line (from 1) of its last key."""
        node, line = self.root, 1
        for depth, key in enumerate(keys):
            step = _child(node, key)
            if step is None:
                return tuple(keys[:depth]), line
            marked, node = step
            line = marked.start_mark.line + 1
        return tuple(keys), line


def read_yaml(text: str) -> YamlDocument:
    """Parse one document. Raises YamlMistake, also for duplicate keys and for a text that is too large."""
    yaml = _parser()
    try:
        root = yaml.compose(text)
        if root is None:
            return YamlDocument(None, None)
        _check(root, (), [])
        return YamlDocument(yaml.constructor.construct_document(root), root)
    except OutOfBounds as error:
        raise YamlMistake(error.problem, error.line) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise YamlMistake(f"invalid YAML: {problem}", mark.line + 1 if mark else 1) from None
    except YAMLError as error:
        problem = " ".join(str(error).split())
        line = 1 + text.count("\n", 0, getattr(error, "position", 0) or 0)
        raise YamlMistake(f"invalid YAML: {problem}", line) from None
    except RecursionError:
        raise YamlMistake("nested too deeply") from None
    except ValueError as error:  # a number with thousands of digits
        raise YamlMistake(f"invalid YAML: {error}") from None


def compose(text: str) -> Node | None:
    """The node tree of a text that `read_yaml` accepts, as written: merges are not applied."""
    root: Node | None = _parser().compose(text)
    return root


def _parser() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = BoundedComposer
    yaml.composer.warn_double_anchors = False  # YAML allows an anchor to be redefined
    return yaml


def _child(node: Node | None, key: str | int) -> tuple[Node, Node] | None:
    """The node that has the line of `key`, and the node of its value."""
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if name.value == key:
                return name, value
    if isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None


def _check(node: Node, keys: KeyPath, above: list[Node]) -> None:
    """Raise YamlMistake for anything that JSON can't represent."""
    line = node.start_mark.line + 1
    if any(node is other for other in above):
        raise YamlMistake("an alias refers to a node that contains it", line, keys)
    if isinstance(node, ScalarNode):
        if node.tag not in _SCALARS:
            raise YamlMistake(f"{node.value!r} is a {_kind(node)}; put it in quotes", line, keys)
    elif isinstance(node, SequenceNode):
        _check_kind(node, "seq", keys)
        for index, item in enumerate(node.value):
            _check(item, (*keys, index), [*above, node])
    elif isinstance(node, MappingNode):
        _check_kind(node, "map", keys)
        names: set[str] = set()
        for name, value in node.value:
            if name.tag == _MERGE:
                _check(value, keys, [*above, node])
                continue
            _check_key(name, names, keys)
            _check(value, (*keys, name.value), [*above, node])


def _check_key(node: Node, names: set[str], keys: KeyPath) -> None:
    line = node.start_mark.line + 1
    if not isinstance(node, ScalarNode) or node.tag != _TAG + "str":
        shown = repr(node.value) if isinstance(node, ScalarNode) else "a list or mapping"
        raise YamlMistake(f"the key {shown} isn't text; put it in quotes", line, keys)
    if node.value in names:
        raise YamlMistake("is given twice", line, (*keys, node.value))
    names.add(node.value)


def _check_kind(node: Node, kind: str, keys: KeyPath) -> None:
    if node.tag != _TAG + kind:
        raise YamlMistake(f"the tag {node.tag} isn't supported", node.start_mark.line + 1, keys)


def _kind(node: ScalarNode) -> str:
    return "date" if node.tag == _TAG + "timestamp" else f"value with the tag {node.tag}"
