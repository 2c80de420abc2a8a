"""The parts of a JSON schema that apply together: references resolved, `allOf` split, values listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import InvalidRequest
from engine.structured.json_parts import (
    COMBINERS,
    MAX_DEPTH,
    SchemaErrors,
    SchemaPart,
    canonical,
    distinct,
    schema_error,
    sequence,
)
from engine.structured.json_references import References, UnresolvedReference, references_of
from engine.structured.json_values import is_valid

_MAX_PARTS = 20_000  # visited parts of one schema, with all its combinations


class SchemaExpander:
    """For one schema, `root`, which the client sent as `param`."""

    def __init__(self, root: Any, param: str, errors: SchemaErrors) -> None:
        self._param = param
        self._errors = errors
        self._references = References(root)
        self._num_parts = 0

    def expand(self, parts: Sequence[SchemaPart]) -> list[SchemaPart]:
        """The parts without references and `allOf`s, whose schemas are listed beside their neighbours."""
        return list(self._expand(parts, ()))

    def _expand(self, parts: Sequence[SchemaPart], around: tuple[str, ...]) -> Iterator[SchemaPart]:
        if len(around) > MAX_DEPTH:
            raise InvalidRequest(f"{parts[0].path:.200}: more than {MAX_DEPTH} deep.", param=parts[0].path)
        for given in parts:
            self._num_parts += 1
            if self._num_parts > _MAX_PARTS:
                raise schema_error(self._param, "", f"the schema combines to more than {_MAX_PARTS} parts")
            part = self._checked(given)
            schema = part.schema
            if not isinstance(schema, dict):
                yield part
                continue
            words = references_of(schema)
            if words or "allOf" in schema:
                yield part.without(*words, "allOf")
            else:
                yield part
            for word in words:
                target = self.resolve(part, word)
                if target.path in around:
                    raise schema_error(part.path, word, "refers to itself directly")
                yield from self._expand([target], (*around, target.path))
            if "allOf" in schema:
                yield from self._expand(self.branches(part, "allOf"), (*around, ""))

    def _checked(self, part: SchemaPart) -> SchemaPart:
        """The part with its path in the client's schema, and OpenAPI 3.0's nullable as a branch."""
        if isinstance(part.schema, dict):
            place = self._references.path_of(part.schema)
            part = part if place is None else replace(part, path=self._param + place)
            self._check_shape(part)
            return self._with_null(part)
        if isinstance(part.schema, bool):
            return part
        self._errors.malformed(
            part.path, "", f"a schema is an object, true or false, not {part.schema!r:.40}"
        )
        return part.made(True, "any")

    def _check_shape(self, part: SchemaPart) -> None:
        for word in ("properties", "patternProperties", "$defs", "definitions", "dependentRequired"):
            if word in part.schema and not isinstance(part.schema[word], dict):
                self._errors.malformed(part.path, word, "must be an object")

    def _with_null(self, part: SchemaPart) -> SchemaPart:
        schema = part.schema
        if schema.get("nullable") is not True or "enum" in schema or "const" in schema:
            return part
        if "type" in schema and not any(word in schema for word in COMBINERS):
            return part
        other = {word: value for word, value in schema.items() if word != "nullable"}
        self._references.note_copy(schema, other)
        return part.made({"anyOf": [other, {"type": "null"}]}, "nullable")

    def resolve(self, part: SchemaPart, word: str) -> SchemaPart:
        try:
            path = self._references.resolve(part.schema, word)
        except UnresolvedReference as error:
            raise schema_error(part.path, word, str(error)) from error
        target = self._references.get(path)
        place = self._references.path_of(target)
        return SchemaPart.at(
            target, self._param + (place if place is not None else "".join(f".{name}" for name in path))
        )

    def branches(self, part: SchemaPart, word: str) -> list[SchemaPart]:
        if not sequence(part.schema, word):
            self._errors.malformed(part.path, word, "must be a list with something in it")
        return [part.child(word, index) for index in range(len(sequence(part.schema, word)))]

    def enumerate_values(self, parts: Sequence[SchemaPart]) -> list[Any] | None:
        """The valid ones of the values that `enum` and `const` list; None if there are no lists."""
        expanded = [part for part in self.expand(parts) if isinstance(part.schema, dict)]
        lists: list[list[Any]] = []
        for part in expanded:
            if "const" in part.schema:
                lists.append([part.schema["const"]])
            if "enum" in part.schema and sequence(part.schema, "enum"):
                null = [None] if part.schema.get("nullable") is True else []
                lists.append([*part.schema["enum"], *null])
            elif "enum" in part.schema:
                self._errors.malformed(part.path, "enum", "must be a list with something in it")
        if not lists:
            return None
        common = set.intersection(*({canonical(value) for value in values} for values in lists))
        left = [value for value in distinct(lists[0]) if canonical(value) in common]
        others = [part.without("const", "enum") for part in expanded]
        return [value for value in left if all(is_valid(value, part, self._expand_one) for part in others)]

    def _expand_one(self, part: SchemaPart) -> list[SchemaPart]:
        return list(self._expand([part], ()))
