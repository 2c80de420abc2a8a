"""Edits a YAML text and leaves the rest of it, comments included, byte for byte unchanged. Pure.

Edits the text at the positions of its nodes, one difference at a time, and parses the result after each: the
result has exactly the wanted content, or an error is raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from configs.yaml_document import YamlDocument, YamlMistake, compose, read_yaml

_INDENT = 2
# Text that needs no quotes anywhere.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_COLON = re.compile(r"\s*:")
_ALIAS = re.compile(r"\*[^\s,\[\]{}]+")
_DASH = re.compile(r"(?:\s|#[^\n]*)*-")
# What may follow the key of a block: an anchor, a scalar's indicator, and a comment (kept).
_BESIDE_BLOCK = re.compile(r"(?:[ \t]+[&!|>]\S*)*([ \t]+#[^\n]*)?")
_RESERVED_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def rewrite(text: str, wanted: Mapping[str, Any]) -> str:
    """The text with as few changes as necessary to have the content `wanted` (JSON's types only).

    Raises YamlMistake if that is impossible, e.g. for a key that comes from elsewhere through an alias.
    """
    if "\r\n" in text and text.count("\n") == text.count("\r\n"):
        return rewrite(text.replace("\r\n", "\n"), wanted).replace("\n", "\r\n")
    document = read_yaml(text)
    for _ in range(1 + _count_differences(document.data or {}, wanted)):
        if same(document.data or {}, wanted):
            return text
        text = _step(text, document, wanted)
        document = read_yaml(text)
    raise YamlMistake("can't be edited without changing other parts; please edit the file by hand")


def same(one: Any, other: Any) -> bool:
    """Equality that distinguishes 1, 1.0 and True, as a file does."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def _count_differences(have: Mapping[str, Any], wanted: Mapping[str, Any]) -> int:
    count = 0
    for key in have.keys() | wanted.keys():
        old, new = have.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            count += 1 + _count_differences(old, new)
        else:
            count += key not in have or key not in wanted or not same(old, new)
    return count


def _step(text: str, document: YamlDocument, wanted: Mapping[str, Any]) -> str:
    """The text with one difference fewer."""
    root = compose(text) if "<<" in text else document.root  # in which merges are applied
    if isinstance(root, MappingNode) and root.value:
        return _step_inside(text, root, document.data, wanted)
    if root is None:  # only comments
        lines = "".join(_block(key, value, 0) for key, value in wanted.items())
        return f"{text}\n{lines}" if text and not text.endswith("\n") else text + lines
    return text[: root.start_mark.index] + _inline(wanted) + text[root.end_mark.index :]


def _step_inside(text: str, node: MappingNode, have: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    places = {key.value: index for index, (key, _) in enumerate(node.value)}
    for key, value in wanted.items():
        if key not in have or (key not in places and not same(have[key], value)):
            return _add(text, node, key, value)
    key = next(key for key in have if key not in wanted or not same(have[key], wanted[key]))
    if key not in places:
        raise YamlMistake(f"{key} comes from another part of the file by `<<`; please edit it by hand")
    if key not in wanted:
        return _remove(text, node, places[key])
    pair, old, new = node.value[places[key]], have[key], wanted[key]
    inside = isinstance(old, Mapping) and isinstance(new, Mapping) and old and not _is_alias(*pair)
    if inside and (new or _is_block(pair[1])):
        return _step_inside(text, pair[1], old, new)
    return _replace(text, node, pair, new)


def _add(text: str, node: MappingNode, key: str, value: Any) -> str:
    """Add a pair after the last one."""
    end = _pair_end(text, *node.value[-1])
    if node.flow_style:
        return f"{text[:end]}, {_inline(key)}: {_inline(value)}{text[end:]}"
    return _insert_below(text, end, _block(key, value, node.value[0][0].start_mark.column))


def _remove(text: str, node: MappingNode, index: int) -> str:
    """Remove a pair; comments in lines of their own stay."""
    key, value = node.value[index]
    start, end = key.start_mark.index, _pair_end(text, key, value)
    if not node.flow_style:
        return text[: text.rfind("\n", 0, start) + 1] + text[_line_end(text, end) + 1 :]
    if index + 1 < len(node.value):
        return text[:start] + text[node.value[index + 1][0].start_mark.index :]
    return text[: _pair_end(text, *node.value[index - 1]) if index else start] + text[end:]


def _replace(text: str, container: MappingNode, pair: tuple[Node, Node], value: Any) -> str:
    """Replace a value: in the key's line, or below it for a mapping in block style."""
    key, old = pair
    colon, end = _colon_end(text, key), _pair_end(text, key, old)
    if _is_block(old):  # its lines are removed; a comment beside the key stays
        start, tail = colon, _BESIDE_BLOCK.match(text, colon)[1] or ""  # type: ignore[index]
        end = _line_end(text, end)
    else:
        start, tail = colon if _is_empty(old) else _value_start(text, colon, old), ""
    if not container.flow_style and isinstance(value, Mapping) and value:
        lines = "".join(_block(k, v, key.start_mark.column + _INDENT) for k, v in value.items())
        head = text[:start].rstrip(" ")
        return _insert_below(head + tail + text[end:], len(head), lines)
    space = "" if text[start - 1].isspace() else " "
    return text[:start] + space + _inline(value) + tail + text[end:]


def _insert_below(text: str, index: int, lines: str) -> str:
    """The text with whole lines inserted below the line of `index`."""
    end = _line_end(text, index)
    return text[:end] + "\n" + lines + text[end + 1 :]


def _line_end(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end


def _is_alias(key: Node, value: Node) -> bool:
    return bool(value.start_mark.index < key.end_mark.index)


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "" and not node.style


def _is_block(node: Node) -> bool:
    """Whether the value has lines of its own."""
    if isinstance(node, ScalarNode):
        return node.style in ("|", ">")
    return isinstance(node, CollectionNode) and not node.flow_style


def _colon_end(text: str, key: Node) -> int:
    """The end of the `:` after a key; in `{a}`, the end of the key."""
    found = _COLON.match(text, key.end_mark.index)
    return found.end() if found else int(key.end_mark.index)


def _value_start(text: str, colon: int, value: Node) -> int:
    start: int = value.start_mark.index
    return start if start >= colon else text.index("*", colon)


def _pair_end(text: str, key: Node, value: Node) -> int:
    """The end of a pair's text, without trailing comments and line ends."""
    return _node_end(text, _colon_end(text, key), value)


def _node_end(text: str, behind: int, node: Node) -> int:
    """The end of a value's text; `behind` is the end of the `:` or `-` before it."""
    if node.start_mark.index < behind:
        alias = _ALIAS.match(text, text.index("*", behind))
        return alias.end() if alias else behind
    if _is_empty(node):
        return behind
    end: int = node.end_mark.index
    if not _is_block(node):
        return end
    if isinstance(node, ScalarNode):
        keeps_ends = "+" in text[node.start_mark.index : _line_end(text, node.start_mark.index)]
        return end - 1 if keeps_ends else len(text[:end].rstrip())
    if isinstance(node, MappingNode):
        return _pair_end(text, *node.value[-1])
    end = node.start_mark.index
    for item in node.value:
        dash = _DASH.match(text, end)
        end = _node_end(text, dash.end() if dash else end, item)
    return end


def _block(key: str, value: Any, column: int) -> str:
    """Whole lines with `key: value`; mappings go below their key."""
    head = " " * column + _inline(key) + ":"
    if isinstance(value, Mapping) and value:
        return f"{head}\n" + "".join(_block(k, v, column + _INDENT) for k, v in value.items())
    return f"{head} {_inline(value)}\n"


def _inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_inline(key)}: {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED_WORDS:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)
