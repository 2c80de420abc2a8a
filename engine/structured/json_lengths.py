"""Expressions whose texts have a length between bounds, or less than all of those."""

from __future__ import annotations

from collections.abc import Sequence

from engine.structured.regex import Chars, Choice, Node, Repeat, Run


def lengths(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters of what matches; None = without end."""
    match node:
        case Chars():
            return 1, 1
        case Run(parts):
            found = [lengths(part) for part in parts]
            mosts = [most for _, most in found if most is not None]
            return sum(least for least, _ in found), sum(mosts) if len(mosts) == len(found) else None
        case Choice(branches):
            found = [lengths(branch) for branch in branches]
            mosts = [most for _, most in found if most is not None]
            return min(least for least, _ in found), max(mosts) if len(mosts) == len(found) else None
        case Repeat(part, least, most):
            low, high = lengths(part)
            if high == 0 or most == 0:
                return 0, 0
            return low * least, None if most is None or high is None else high * most
    return 0, 0


def bounded(node: Node, least: int, most: int | None) -> Node | None:
    """The same with a length between these, or less than that; None if there is no simple way to say it."""
    low, high = lengths(node)
    if low >= least and (most is None or (high is not None and high <= most)):
        return node
    exact = _adjusted(node, least, most)
    if exact is not None:
        return exact
    if most is None or low < least or low > most:
        return None
    for size in range(8, -1, -1):
        smaller = _shrunk(node, most * size // 8, size)
        if (lengths(smaller)[1] or 0) <= most:
            return smaller
    return None


def _adjusted(node: Node, least: int, most: int | None) -> Node | None:
    """By its only part of changing length, if that repeats what has one length."""
    parts = node.parts if isinstance(node, Run) else (node,)
    fixed = [lengths(part) for part in parts]
    changing = [index for index, (low, high) in enumerate(fixed) if low != high]
    if len(changing) != 1:
        return None
    part = parts[changing[0]]
    if isinstance(part, Run):
        inner = _adjusted_inner(part, fixed, changing[0], least, most)
        return None if inner is None else Run((*parts[: changing[0]], inner, *parts[changing[0] + 1 :]))
    if not isinstance(part, Repeat):
        return None
    size, size_most = lengths(part.part)
    if size != size_most or not size:
        return None
    rest = sum(low for index, (low, _) in enumerate(fixed) if index != changing[0])
    fewest = max(part.least, -(-max(0, least - rest) // size))
    tops = [top for top in (part.most, None if most is None else (most - rest) // size) if top is not None]
    top = min(tops, default=None)
    if top is not None and top < fewest:
        return None
    return Run((*parts[: changing[0]], Repeat(part.part, fewest, top), *parts[changing[0] + 1 :]))


def _adjusted_inner(
    part: Run, fixed: Sequence[tuple[int, int | None]], at: int, least: int, most: int | None
) -> Node | None:
    rest = sum(low for index, (low, _) in enumerate(fixed) if index != at)
    return _adjusted(part, max(0, least - rest), None if most is None else most - rest)


def _shrunk(node: Node, most: int, size: int) -> Node:
    """With counts that leave less: `size` eighths of what may repeat, and `most` times what may without end."""
    match node:
        case Run(parts):
            return Run(tuple(_shrunk(part, most, size) for part in parts))
        case Choice(branches):
            return Choice(tuple(_shrunk(branch, most, size) for branch in branches))
        case Repeat(part, least, top):
            more = max(0, most - least) if top is None else (top - least) * size // 8
            return Repeat(_shrunk(part, most, size), least, least + more)
    return node
