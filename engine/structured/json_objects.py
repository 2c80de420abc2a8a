"""What a JSON schema says of objects, as the compiler follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.structured.automaton import State, combined
from engine.structured.json_arrays import Enumerate, Follow
from engine.structured.json_parts import MAX_COUNT, Complaints, Part, mapping
from engine.structured.json_strings import say_name
from engine.structured.json_texts import Text, matches, read_count, read_text
from engine.structured.json_values import children_of
from engine.structured.regex import Node, UnsupportedPattern, search
from engine.structured.regex_parser import parse

_MAX_COUNTED_PROPERTIES = 64  # beside minProperties or maxProperties, which take a state per pair of numbers
_MAX_COMPARED_STATES = 1024


@dataclass(slots=True)
class _Object:
    required: dict[str, None]
    least: int
    most: int | None
    properties: dict[str, Any] = field(default_factory=dict)
    others: Any = False  # of the properties that are named nowhere; False = there are none
    patterns: dict[str, Any] = field(default_factory=dict)  # said by names' patterns instead


def follow_objects(
    parts: Sequence[Part], follow: Follow, enumerate_values: Enumerate, complaints: Complaints
) -> dict[str, Any] | None:
    """None if no object is possible."""
    counts = [
        read_count(part, "maxProperties", MAX_COUNT, complaints)
        for part in parts
        if "maxProperties" in part.schema
    ]
    said = _Object(
        required=dict.fromkeys(name for part in parts for name in _required(part, complaints)),
        least=max((read_count(part, "minProperties", 0, complaints) for part in parts), default=0),
        most=min(counts, default=None),
    )
    names = [part.child("propertyNames") for part in parts if "propertyNames" in part.schema]
    listed = enumerate_values(names)
    _name_properties(said, parts, follow, listed)
    if names and listed is None:
        _keep_names(said, names, complaints)
    if any(name not in said.properties for name in said.required):
        return None
    if not names:
        _say_patterns(said, parts, follow, complaints)
    elif listed is None and _patterns_of(parts):
        complaints.refuse(names[0].path, "", "propertyNames beside patternProperties is not supported")
        said.patterns, said.others = {}, True
    return _written(said, parts, complaints)


def _required(part: Part, complaints: Complaints) -> list[str]:
    """As a list of names, and as draft 3 has it and some tools still do: `true` in a property's schema."""
    said = part.schema.get("required", [])
    if not isinstance(said, bool | list) or (
        isinstance(said, list) and any(not isinstance(n, str) for n in said)
    ):
        complaints.malformed(part.path, "required", "must be a list of names")
        said = []
    own = mapping(part.schema, "properties").items()
    marked = [name for name, one in own if isinstance(one, dict) and one.get("required") is True]
    return [*(said if isinstance(said, list) else ()), *marked]


def _name_properties(
    said: _Object, parts: Sequence[Part], follow: Follow, listed: Sequence[Any] | None
) -> None:
    named = dict.fromkeys(name for part in parts for name in mapping(part.schema, "properties"))
    is_open = any(
        "additionalProperties" in part.schema or "unevaluatedProperties" in part.schema for part in parts
    )
    is_bare = not any("properties" in part.schema or "patternProperties" in part.schema for part in parts)
    if listed is not None:
        may_be = [name for name in listed if isinstance(name, str)]
        named = dict.fromkeys(may_be if is_open or is_bare else [name for name in named if name in may_be])
    else:
        named |= said.required
    for name in named:
        followed = follow([child for part in parts for child in _children(part, name, parts)])
        if followed is not False:
            said.properties[name] = {} if followed is True else followed
    if listed is None and (is_open or is_bare):
        said.others = follow([one for part in parts for one in _others(part)])


def _children(part: Part, name: str, parts: Sequence[Part]) -> list[Part]:
    """Of one schema; what nobody has evaluated, others beside it may have: only if none is beside it is it
    the same as an additional property."""
    is_known = any(name in mapping(one.schema, "properties") for one in parts)
    if part.is_around and is_known and "unevaluatedProperties" in part.schema:
        part = part.without("unevaluatedProperties")
    return children_of(part, name)


def _others(part: Part) -> list[Part]:
    words = ("additionalProperties", "unevaluatedProperties")
    return [part.child(word) for word in words if word in part.schema][:1]


def _keep_names(said: _Object, names: Sequence[Part], complaints: Complaints) -> None:
    """Properties whose names are allowed, and others only as a pattern says it."""
    try:
        text = read_text(names, complaints)
        if text is None:
            said.properties, said.others = {}, False
            return
        nodes = [*text.known, *([text.length] if text.length else [])]
        said.properties = {
            name: one
            for name, one in said.properties.items()
            if all(matches(name, node) is not False for node in nodes)
        }
        if said.others is not False:
            said.patterns = {say_name(text, complaints): said.others}
            said.others = False
    except UnsupportedPattern as error:
        complaints.refuse(names[0].path, "pattern", f"can't be followed: {error}")


def _patterns_of(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Each pattern of names, with its schemas."""
    found: dict[str, list[Part]] = {}
    for part in parts:
        for pattern in mapping(part.schema, "patternProperties"):
            found.setdefault(pattern, []).append(part.child("patternProperties", pattern))
    return found


def _say_patterns(said: _Object, parts: Sequence[Part], follow: Follow, complaints: Complaints) -> None:
    """Names by pattern: where a name could be two things at once, some are left out, or it is refused."""
    given = _patterns_of(parts)
    if not given:
        return
    path = next((part.path for part in parts if "patternProperties" in part.schema), "")
    nodes: dict[str, Node] = {}
    for pattern in given:
        try:
            nodes[pattern] = search(parse(pattern))
        except UnsupportedPattern as error:
            complaints.refuse(path, "patternProperties", f"can't be followed: {error}")
    for pattern, node in nodes.items():
        elsewhere = [one for part in parts if pattern not in _patterns_of([part]) for one in _others(part)]
        followed = follow([*given[pattern], *elsewhere])
        # A property that is named, too, would come twice; so the object has the named ones alone.
        is_named = any(matches(name, node) is not False for name in said.properties)
        if followed is not False and not is_named:
            said.patterns[_name_pattern(node)] = followed
    if not _are_disjoint(list(nodes.values())):
        complaints.refuse(
            path, "patternProperties", "with patterns that match the same name is not supported"
        )
        said.patterns, said.others = {}, True
    elif said.patterns or said.properties:
        said.others = False  # names that match none of the patterns can't be told from others


def _name_pattern(node: Node) -> str:
    return say_name(Text("", (node,)), Complaints(is_strict=False))


def _are_disjoint(nodes: Sequence[Node]) -> bool:
    pairs = [(a, b) for index, a in enumerate(nodes) for b in nodes[index + 1 :]]
    return all(combined(pair, max_states=_MAX_COMPARED_STATES) == (State(False, ()),) for pair in pairs)


def _written(said: _Object, parts: Sequence[Part], complaints: Complaints) -> dict[str, Any] | None:
    is_closed = said.others is False and not said.patterns
    path = next((p.path for p in parts if "minProperties" in p.schema or "maxProperties" in p.schema), "")
    if said.most is not None and len(said.required) > said.most:
        return None
    if said.least > 1 and not is_closed:
        if len(said.properties) < said.least:
            complaints.refuse(
                path, "minProperties", "is supported up to 1, or beside enough properties that are named"
            )
            said.least = 1
        else:  # names that aren't known could repeat
            said.others, said.patterns, is_closed = False, {}, True
    if is_closed and said.least > len(said.properties):
        return None
    if is_closed and said.most is not None and said.most >= len(said.properties):
        said.most = None
    if said.least <= len(said.required):
        said.least = 0
    if said.properties and said.patterns and (said.least or said.most is not None):
        said.patterns = {}
    if len(said.properties) > _MAX_COUNTED_PROPERTIES and (said.least or said.most is not None):
        word = "minProperties" if said.least else "maxProperties"
        complaints.refuse(
            path, word, f"beside more than {_MAX_COUNTED_PROPERTIES} properties is not supported"
        )
        said.least, said.most = 0, None
    return _as_schema(said)


def _as_schema(said: _Object) -> dict[str, Any]:
    followed: dict[str, Any] = {"type": "object"}
    if said.properties or not said.patterns:
        followed |= {"properties": said.properties, "required": list(said.required)}
    if said.patterns:
        followed["patternProperties"] = said.patterns
    elif said.others is not False or not said.properties:
        followed["additionalProperties"] = said.others
    followed |= {"minProperties": said.least} if said.least else {}
    followed |= {} if said.most is None else {"maxProperties": said.most}
    return followed
