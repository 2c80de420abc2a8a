"""Resolves the references in a JSON schema to paths from the schema's root, however they are written.

Tools write them as pointers, percent-encoded or not, with `$id` and `$anchor`, and relative to an embedded
schema with its own `$defs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

_NAMED = frozenset(
    ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties", "schemas")
)  # their keys are names, not words of a schema
_VALUES = frozenset(("const", "default", "enum", "example", "examples"))
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_MAX_DEPTH = 256

Path = tuple[str, ...]


class UnresolvedReference(ValueError):
    """A reference that can't be resolved; the message says why."""


class References:
    """The references of one schema, the root."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._ids: dict[str, Path] = {}
        self._anchors: dict[str, Path] = {}
        self._copies: list[Any] = []  # kept alive, so that their ids aren't reused
        # By id of a schema: its path, the base of its references, and enclosing schemas with definitions.
        self._places: dict[int, tuple[Path, str, tuple[Path, ...]]] = {}
        self._note(root, (), "", (), is_schema=True)

    def resolve(self, schema: Any, word: str) -> Path:
        """The path that the reference under this word of a schema leads to. Raises UnresolvedReference."""
        text = schema[word]
        if not isinstance(text, str):
            raise UnresolvedReference("must be a string")
        _, base, around = self._places.get(id(schema), ((), "", ()))
        try:
            resource, fragment = urldefrag(urljoin(base, text))
        except ValueError as error:
            raise UnresolvedReference(f"{text!r:.80} is not a valid reference") from error
        if resource in ("", self._ids_of_root):
            start: Path = ()
        elif resource in self._ids:
            start = self._ids[resource]
        else:
            raise UnresolvedReference(f"must point into the schema itself (#/…), not to {text!r:.80}")
        return self._find(start, unquote(fragment), around, text)

    def note_copy(self, schema: Any, copy: Any) -> None:
        """Record that a schema was copied from another one, with the same references."""
        if id(schema) in self._places:
            self._places[id(copy)] = self._places[id(schema)]
            self._copies.append(copy)

    def path_of(self, schema: Any) -> str | None:
        """The path of a schema in the root, as text; None if it isn't there."""
        if id(schema) not in self._places:
            return None
        written, at = "", self._root
        for name in self._places[id(schema)][0]:
            written += f"[{name}]" if isinstance(at, list) else f".{name}"
            at = self.get_in(at, name)
        return written

    @staticmethod
    def get_in(value: Any, name: str) -> Any:
        return value[_index(name)] if isinstance(value, list) else _member(value, name)

    def get(self, path: Path) -> Any:
        """Raises LookupError."""
        target = self._root
        for name in path:
            target = self.get_in(target, name)
        return target

    @property
    def _ids_of_root(self) -> str:
        return next((uri for uri, path in self._ids.items() if path == ()), "")

    def _find(self, start: Path, fragment: str, around: tuple[Path, ...], text: str) -> Path:
        if not fragment:
            return start
        if not fragment.startswith("/"):
            if fragment not in self._anchors:
                raise UnresolvedReference(f"{text!r:.80} points to nothing: no $anchor has that name")
            return self._anchors[fragment]
        names = tuple(name.replace("~1", "/").replace("~0", "~") for name in fragment[1:].split("/"))
        for origin in (start, *reversed(around)):
            try:
                self.get((*origin, *names))
            except LookupError:
                continue
            return (*origin, *names)
        raise UnresolvedReference(f"{text!r:.80} points to nothing")

    def _note(self, value: Any, path: Path, base: str, around: tuple[Path, ...], *, is_schema: bool) -> None:
        if len(path) > _MAX_DEPTH or not isinstance(value, dict | list):
            return
        if isinstance(value, dict) and is_schema:
            base = self._note_names(value, path, base)
            if path and any(isinstance(value.get(word), dict) for word in ("$defs", "definitions")):
                around = (*around, path)
            self._places[id(value)] = (path, base, around)
        for name, inner, is_one in _inner(value, is_schema=is_schema):
            self._note(inner, (*path, name), base, around, is_schema=is_one)

    def _note_names(self, schema: dict[str, Any], path: Path, base: str) -> str:
        """Record a schema's names; returns the base of the schemas in it."""
        name = schema.get("$id", schema.get("id") if not path else None)
        if isinstance(name, str) and not name.startswith("#"):
            try:
                base = urldefrag(urljoin(base, name))[0]
            except ValueError:
                return base
            self._ids.setdefault(base, path)
        elif isinstance(name, str):  # how draft 7 writes an anchor
            self._anchors.setdefault(name[1:], path)
        for word in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(word), str):
                self._anchors.setdefault(schema[word], path)
        return base


def references_of(schema: dict[str, Any]) -> list[str]:
    """The words of a schema that hold references."""
    return [word for word in _REFERENCES if word in schema]


def _inner(value: dict[str, Any] | list[Any], *, is_schema: bool) -> Iterator[tuple[str, Any, bool]]:
    """Its children, and whether each is a schema rather than a table of schemas."""
    if isinstance(value, list):
        yield from ((str(index), one, True) for index, one in enumerate(value))
        return
    for name, inner in value.items():
        if not (is_schema and name in _VALUES):
            yield name, inner, not (is_schema and name in _NAMED)


def _index(name: str) -> int:
    if not name.isdecimal() or len(name) > 6:
        raise LookupError(name)
    return int(name)


def _member(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise LookupError(name)
    return value[name]
