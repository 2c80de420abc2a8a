"""Checks a parsed body against its size limits (body_limits.py), before its fields are validated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InvalidRequest
from engine.server.http.large_work import GilThrottle
from engine.server.protocol.size_limit import Measure, SizeLimit, SizeLimits

_VALUES_BETWEEN_PAUSES = 256
_DEEP = (Measure.CHARS, Measure.VALUES)
_SCALARS = frozenset({int, float, bool, type(None)})


class LimitExceeded(InvalidRequest):
    """A part of a request exceeds its size limit."""


@dataclass(slots=True)
class LimitTree:
    """A node of the size limits arranged by path."""

    size_limits: list[SizeLimit] = field(default_factory=list)
    fields: dict[str, LimitTree] = field(default_factory=dict)
    entries: LimitTree | None = None

    def add(self, limit: SizeLimit) -> None:
        node = self
        for step in limit.path.split("."):
            name = step.rstrip("[]")
            node = node.fields.setdefault(name, LimitTree())
            for _ in range(step.count("[]")):
                node.entries = node = node.entries or LimitTree()
        node.size_limits.append(limit)


def tree_of(size_limits: SizeLimits) -> LimitTree:
    """Built once per body model."""
    root = LimitTree()
    for limit in size_limits:
        if limit.measure is not Measure.TEXT:
            root.add(limit)
    return root


def check_sizes(
    body: Any,
    tree: LimitTree,
    *,
    num_bytes: int | None = None,
    is_cut: bool = False,
) -> None:
    """Raise LimitExceeded for the first limit that is exceeded.

    `num_bytes`: the size of the body's JSON text; parts that cannot exceed their limit are not counted.
    `is_cut`: the body is only the beginning. Text limits are checked at tokenization, after truncation.
    """
    _Check(num_bytes, is_cut=is_cut).visit(tree, body)


class _Check:
    """The check of one body."""

    def __init__(self, num_bytes: int | None, *, is_cut: bool) -> None:
        self._num_bytes = num_bytes
        self._is_cut = is_cut
        self._throttle = GilThrottle()
        self._totals: dict[SizeLimit, int] = {}
        self._path: list[str] = []

    def visit(self, node: LimitTree, value: Any) -> None:
        for limit in node.size_limits:
            self._compare(limit, value)
        if node.fields and isinstance(value, dict):
            for name, inner in node.fields.items():
                if (found := value.get(name)) is not None:
                    self._visit_child(inner, found, f".{name}" if self._path else name)
        elif node.entries is not None and isinstance(value, list):
            for index, entry in enumerate(value):
                self._visit_child(node.entries, entry, f"[{index}]")
                if index % _VALUES_BETWEEN_PAUSES == 0:
                    self._throttle.pause()

    def _visit_child(self, node: LimitTree, value: Any, step: str) -> None:
        self._path.append(step)
        self.visit(node, value)
        self._path.pop()

    def _compare(self, limit: SizeLimit, value: Any) -> None:
        if limit.measure in _DEEP and self._num_bytes is not None and self._num_bytes <= limit.most:
            return  # each character and each value takes at least one byte
        size, is_exact = self._measure(limit.measure, value, limit.most)
        if limit.total:
            size = self._totals[limit] = self._totals.get(limit, 0) + size
        if size > limit.most:
            raise self._exceeded(limit, size, is_exact=is_exact and not self._is_cut)

    def _measure(self, measure: Measure, value: Any, enough: int) -> tuple[int, bool]:
        """The size, and whether it is exact: counting stops once the limit is exceeded."""
        match measure:
            case Measure.ENTRIES:
                return len(value) if isinstance(value, list | dict) else 0, True
            case Measure.INPUTS:
                is_many = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
                return len(value) if is_many else 0, True
            case _:
                size = _count(value, enough, self._throttle, chars=measure is not Measure.VALUES)
                return size, isinstance(value, str) or size <= enough

    def _exceeded(self, limit: SizeLimit, size: int, *, is_exact: bool) -> LimitExceeded:
        place = "".join(self._path)
        name, param = (limit.path, limit.path.partition("[]")[0]) if limit.total else (place, place)
        within = " in all" if limit.total else ""
        found = f"not {size}" if is_exact and not limit.total else f"not {size} or more"
        return LimitExceeded(
            f"{name}: at most {limit.most} {limit.measure.value}{within}, {found}.", param=param
        )


def _count(value: Any, enough: int, throttle: GilThrottle, *, chars: bool) -> int:
    """The number of nested values, or characters; above `enough`, any number greater than that."""
    num_values = num_chars = 0
    for number, (values, names) in enumerate(_groups(value)):
        num_values += len(values)
        if chars:
            num_chars += sum(map(len, names)) + sum(len(item) for item in values if isinstance(item, str))
        size = num_chars if chars else num_values
        if size > enough:
            return size
        if number % _VALUES_BETWEEN_PAUSES == 0:
            throttle.pause()
    return num_chars if chars else num_values


def _groups(value: Any) -> Iterator[tuple[list[Any], list[str]]]:
    """All nested values, grouped by their list or object, with its field names."""
    stack = [[value]]
    yield [value], []
    while stack:
        for item in stack.pop():
            if isinstance(item, dict):
                inner, names = list(item.values()), list(item)
            elif isinstance(item, list):
                inner, names = item, []
            else:
                continue
            yield inner, names
            if not _SCALARS.issuperset(map(type, inner)):
                stack.append(inner)


def is_larger(value: Any, chars: int) -> bool:
    """Whether a value, as JSON, has about `chars` characters or more; counts no further."""
    return (
        value is not None
        and _count([value], chars, GilThrottle(), chars=True)
        + _count(value, chars // 4, GilThrottle(), chars=False) * 4
        > chars
    )
