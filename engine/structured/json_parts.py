"""One part of a JSON schema as the client wrote it, and helpers for all modules that read it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import InvalidRequest

TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
MAX_COUNT = 100_000
MAX_DEPTH = 64

# Which words constrain which type; all others are annotations, or combine schemas.
ASSERTIONS: Mapping[str, tuple[str, ...]] = {
    "string": ("format", "maxLength", "minLength", "pattern"),
    "number": ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"),
    "array": (
        "additionalItems",
        "contains",
        "items",
        "maxContains",
        "maxItems",
        "minContains",
        "minItems",
        "prefixItems",
        "unevaluatedItems",
        "uniqueItems",
    ),
    "object": (
        "additionalProperties",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "maxProperties",
        "minProperties",
        "patternProperties",
        "properties",
        "propertyNames",
        "required",
        "unevaluatedProperties",
    ),
}
# Our own words, for negations: none of these values, and no string that matches this pattern.
NOT_VALUES = "~not values"
NOT_PATTERN = "~not pattern"
COMBINERS = ("$ref", "allOf", "anyOf", "else", "if", "not", "oneOf", "then")
CONSTRAINING = frozenset(("const", "enum", "nullable", "type", NOT_VALUES, NOT_PATTERN, *COMBINERS)).union(
    *ASSERTIONS.values()
)


_AROUND = ("allOf", "anyOf", "oneOf")  # `allOf` also of a reference


@dataclass(frozen=True, slots=True)
class SchemaPart:
    """A schema that must hold at a position, possibly beside others."""

    schema: Any
    path: str  # where the client wrote it, for errors
    key: str  # identifies it: the path, and how it was derived

    @staticmethod
    def at(schema: Any, path: str) -> SchemaPart:
        return SchemaPart(schema, path, path)

    def child(self, word: str, name: str | int | None = None) -> SchemaPart:
        """The schema in it under a word, or under a name or index in that word's value."""
        inner = self.schema[word] if name is None else self.schema[word][name]
        end = "" if name is None else f"[{name}]" if isinstance(name, int) else f".{name}"
        return SchemaPart(inner, f"{self.path}.{word}{end}", f"{self.key}.{word}{end}")

    def made(self, schema: Any, what: str) -> SchemaPart:
        """Another schema, derived from this one."""
        return SchemaPart(schema, self.path, f"{self.key}~{what}")

    def without(self, *words: str) -> SchemaPart:
        left = {word: value for word, value in self.schema.items() if word not in words}
        return replace(self, schema=left, key=f"{self.key}~-{','.join(words)}")

    @property
    def is_around(self) -> bool:
        """Whether it stood beside a combination, whose schemas are now beside it."""
        left = self.key.split("~-")[1:]
        return any(word in left_words.split(",") for left_words in left for word in _AROUND)

    @property
    def is_empty(self) -> bool:
        """Whether every value satisfies it."""
        return self.schema is True or (
            isinstance(self.schema, dict) and not CONSTRAINING & self.schema.keys()
        )


class SchemaErrors:
    """How to treat what can't be enforced: as an error that names it or, if not strict, left to the model."""

    def __init__(self, *, is_strict: bool, advice: str = "") -> None:
        self.is_strict = is_strict
        self._advice = f"; {advice}" if advice else ""

    def refuse(self, path: str, word: str, what: str) -> None:
        """Raises InvalidRequest if strict. Otherwise the caller omits the word, which allows more values."""
        if self.is_strict:
            raise schema_error(path, word, what + self._advice)

    def malformed(self, path: str, word: str, what: str) -> None:
        """Likewise for an invalid JSON schema, without the advice."""
        if self.is_strict:
            raise schema_error(path, word, what)


def schema_error(path: str, word: str, what: str) -> InvalidRequest:
    problem = f"{word} {what}" if word else what
    return InvalidRequest(f"{path}: {problem}.", param=f"{path}.{word}" if word else path)


def mapping(schema: Mapping[str, Any], word: str) -> Mapping[str, Any]:
    value = schema.get(word)
    return value if isinstance(value, dict) else {}


def sequence(schema: Mapping[str, Any], word: str) -> Sequence[Any]:
    value = schema.get(word)
    return value if isinstance(value, list) else []


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def are_equal(one: Any, other: Any) -> bool:
    return canonical(one) == canonical(other)


def canonical(value: Any) -> Hashable:
    """Equal for values that are equal in JSON: 1 equals 1.0, but true doesn't equal 1."""
    match value:
        case bool():
            return "boolean", value
        case list():
            return "array", tuple(map(canonical, value))
        case dict():
            return "object", frozenset((name, canonical(one)) for name, one in value.items())
        case _:
            return value  # type: ignore[no-any-return]  # null, a number or a string


def distinct(values: Iterable[Any]) -> list[Any]:
    return list({canonical(value): value for value in reversed(list(values))}.values())[::-1]


def common_types(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """The types of values that are of both; None = any. An integer is also a number."""
    if one is None or other is None:
        return other if one is None else one
    numbers = frozenset(("integer", "number"))
    if one & numbers and other & numbers and not one & other & numbers:
        return one & other | {"integer"}
    return one & other


def implied_types(parts: Sequence[SchemaPart]) -> frozenset[str] | None:
    """The types implied by words, if none is named: `maxLength` alone implies a string."""
    found = {name for part in parts for name, words in ASSERTIONS.items() if part.schema.keys() & set(words)}
    return frozenset(found) or None
