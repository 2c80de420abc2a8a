"""Normalises the words of a JSON schema about numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from engine.structured.json_parts import SchemaErrors, SchemaPart, is_number

_MAX_INTEGER = 2**63 - 1
_MAX_MULTIPLE = 1024  # the compiler ignores greater ones
_MAX_LISTED = 512  # multiples within bounds, which are listed
_BOUNDS = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum")


@dataclass(frozen=True, slots=True)
class _Bound:
    value: int | float
    is_exclusive: bool


def normalise_numbers(kind: str, parts: Sequence[SchemaPart], errors: SchemaErrors) -> dict[str, Any] | None:
    """`kind`: integer or number. None if no number is possible."""
    low = max(_bounds(parts, "minimum", errors), key=_low_key, default=None)
    high = min(_bounds(parts, "maximum", errors), key=_high_key, default=None)
    factors = list(_factors(parts, errors))
    if kind == "number" and factors and all(factor.denominator == 1 for _, factor in factors):
        kind = "integer"  # multiples of whole numbers are whole, apart from their spelling
    if kind == "integer":
        return _integers(low, high, factors, errors)
    for part, _ in factors:
        errors.refuse(
            part.path, "multipleOf", "is supported for whole numbers, or type 'integer'; use a string pattern"
        )
    return _numbers(low, high)


def _numbers(low: _Bound | None, high: _Bound | None) -> dict[str, Any] | None:
    if low is not None and high is not None:
        is_open = low.is_exclusive or high.is_exclusive
        if low.value > high.value or (is_open and low.value == high.value):
            return None
    normalised: dict[str, Any] = {"type": "number"}
    if low is not None and low.value >= -_MAX_INTEGER:  # the compiler has no greater bounds
        normalised["exclusiveMinimum" if low.is_exclusive else "minimum"] = low.value
    if high is not None and high.value <= _MAX_INTEGER:
        normalised["exclusiveMaximum" if high.is_exclusive else "maximum"] = high.value
    return normalised


def _integers(
    low: _Bound | None,
    high: _Bound | None,
    factors: Sequence[tuple[SchemaPart, Fraction]],
    errors: SchemaErrors,
) -> dict[str, Any] | None:
    least = None if low is None else _first_above(low)
    most = None if high is None else -_first_above(_Bound(-high.value, high.is_exclusive))
    if least is not None and most is not None and least > most:
        return None
    # The compiler has integers of 64 bits only: restrict the range to those.
    if (least or 0) > _MAX_INTEGER or (most or 0) < -_MAX_INTEGER:
        return None
    least = None if least is None else max(least, -_MAX_INTEGER)
    most = None if most is None else min(most, _MAX_INTEGER)
    factor = math.lcm(*(factor.numerator for _, factor in factors))
    normalised: dict[str, Any] = {"type": "integer"}
    if factor > 1:
        return _multiples(least, most, factor, factors[0][0].path, errors)
    if least is not None:
        normalised["minimum"] = least
    if most is not None:
        normalised["maximum"] = most
    return normalised


def _multiples(
    least: int | None, most: int | None, factor: int, path: str, errors: SchemaErrors
) -> dict[str, Any] | None:
    if least is None and most is None and factor <= _MAX_MULTIPLE:
        return {"type": "integer", "multipleOf": factor}
    if least is not None and most is not None:
        values = range(-(-least // factor) * factor, most + 1, factor)
        if len(values) <= _MAX_LISTED:
            return {"enum": list(values)} if values else None
    errors.refuse(
        path,
        "multipleOf",
        f"is supported up to {_MAX_MULTIPLE} without bounds, or between a minimum and a maximum "
        f"with at most {_MAX_LISTED} multiples",
    )
    bounds = {"minimum": least, "maximum": most}
    return {"type": "integer", **{word: bound for word, bound in bounds.items() if bound is not None}}


def _first_above(bound: _Bound) -> int:
    whole = math.ceil(bound.value)
    return whole + 1 if bound.is_exclusive and whole == bound.value else whole


def _bounds(parts: Sequence[SchemaPart], word: str, errors: SchemaErrors) -> Iterator[_Bound]:
    """Reads bounds as numbers, and in draft 4's form: `exclusiveMinimum: true` beside `minimum`."""
    exclusive = f"exclusive{word.capitalize()}"
    for part in parts:
        is_exclusive = part.schema.get(exclusive) is True
        for name in (word, exclusive):
            value = part.schema.get(name)
            if value is None or (name == exclusive and isinstance(value, bool)):
                continue
            if is_number(value):
                yield _Bound(value, is_exclusive or name == exclusive)
            else:
                errors.malformed(part.path, name, f"must be a number, not {value!r:.40}")


def _factors(parts: Sequence[SchemaPart], errors: SchemaErrors) -> Iterator[tuple[SchemaPart, Fraction]]:
    for part in parts:
        factor = part.schema.get("multipleOf")
        if factor is None:
            continue
        if is_number(factor) and factor > 0:
            yield part, Fraction(str(factor))
        else:
            errors.malformed(part.path, "multipleOf", f"must be a number above 0, not {factor!r:.40}")


def _low_key(bound: _Bound) -> tuple[float, bool]:
    return bound.value, bound.is_exclusive


def _high_key(bound: _Bound) -> tuple[float, bool]:
    return bound.value, not bound.is_exclusive


def is_valid_number(value: int | float, schema: dict[str, Any]) -> bool:
    """Whether a number satisfies one schema's words about numbers."""
    quiet = SchemaErrors(is_strict=False)
    part = [SchemaPart.at(schema, "")]
    lows, highs = _bounds(part, "minimum", quiet), _bounds(part, "maximum", quiet)
    return (
        all(value > low.value or (value == low.value and not low.is_exclusive) for low in lows)
        and all(value < high.value or (value == high.value and not high.is_exclusive) for high in highs)
        and all(Fraction(str(value)) % factor == 0 for _, factor in _factors(part, quiet))
    )
