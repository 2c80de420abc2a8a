"""Compares a parsed body with its caps (engine/server/limits.py), before its fields are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.server.large_work import Pace
from engine.server.limits import Cap, Measure

_CHECKED_BETWEEN_RESTS = 4096  # values


class CapExceeded(InvalidRequest):
    """More of something than a request may carry."""


def check_caps(body: Any, caps: Iterable[Cap], *, is_cut: bool = False) -> None:
    """Raise CapExceeded for the first cap that is passed. `is_cut`: there is more than the body shows."""
    pace = Pace()
    for cap in caps:
        total = 0
        for path, value in _find(body, cap.path.split("."), ""):
            size = _measure(value, cap, pace)
            total = total + size if cap.total else size
            if total > cap.most:
                raise _exceeded(cap, path, total, is_cut=is_cut or cap.total)
        pace.rest()


def _exceeded(cap: Cap, path: str, size: int, *, is_cut: bool) -> CapExceeded:
    param = cap.path.partition("[]")[0] if cap.total else path
    counted = cap.measure in (Measure.ENTRIES, Measure.INPUTS) and not is_cut
    found = f"not {size}" if counted else f"not {size} or more"
    within = " in all" if cap.total else ""
    name = cap.path if cap.total else path
    return CapExceeded(f"{name}: at most {cap.most} {cap.measure.value}{within}, {found}.", param=param)


def _find(value: Any, steps: Sequence[str], path: str) -> Iterator[tuple[str, Any]]:
    """What a path leads to, and where each of it is."""
    if not steps:
        yield path, value
        return
    name = steps[0].rstrip("[]")
    found = value.get(name) if isinstance(value, dict) else None
    if found is None:
        return
    where = f"{path}.{name}" if path else name
    for entry, place in _entries(found, where, depth=steps[0].count("[]")):
        yield from _find(entry, steps[1:], place)


def _entries(value: Any, path: str, depth: int) -> Iterator[tuple[Any, str]]:
    """The entries of lists within lists, so many deep, and where each of them is."""
    if depth == 0:
        yield value, path
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _entries(entry, f"{path}[{index}]", depth - 1)


def _measure(value: Any, cap: Cap, pace: Pace) -> int:
    match cap.measure:
        case Measure.ENTRIES:
            return len(value) if isinstance(value, list | dict) else 0
        case Measure.INPUTS:
            is_many = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
            return len(value) if is_many else 0
        case Measure.CHARS:
            return _count(value, cap.most, pace, chars=True)
        case Measure.VALUES:
            return _count(value, cap.most, pace, chars=False)


def _count(value: Any, enough: int, pace: Pace, *, chars: bool) -> int:
    """All values in `value`, or all characters; when there are more than `enough`, some number above that."""
    stack = [value]
    num_values = num_chars = 0
    while stack:
        one = stack.pop()
        num_values += 1
        if isinstance(one, str):
            num_chars += len(one)
        elif isinstance(one, dict):
            stack += one.values()
            num_chars += sum(map(len, one)) if chars else 0
        elif isinstance(one, list):
            stack += one
        size = num_chars if chars else num_values + len(stack)
        if size > enough:
            return size
        if num_values % _CHECKED_BETWEEN_RESTS == 0:
            pace.rest()
    return num_chars if chars else num_values


def is_larger(value: Any, chars: int) -> bool:
    """Whether a value, written down, is about so many characters or more; looks at no more than those."""
    return (
        value is not None
        and _count([value], chars, Pace(), chars=True) + _count(value, chars // 4, Pace(), chars=False) * 4
        > chars
    )
