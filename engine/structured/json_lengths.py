"""Restricts expressions to texts with a length between bounds, or to a subset of those texts."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isqrt

from engine.structured.regex import ANY_TEXT, Alternation, Chars, Concatenation, Node, Repeat


def lengths(node: Node) -> tuple[int, int | None]:
    """The minimum and maximum length of a match; None = unbounded."""
    match node:
        case Chars():
            return 1, 1
        case Concatenation(parts):
            found = [lengths(part) for part in parts]
            mosts = [most for _, most in found if most is not None]
            return sum(least for least, _ in found), sum(mosts) if len(mosts) == len(found) else None
        case Alternation(branches):
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
    """The expression with a length between these, or a subset; None if there is no simple one for it."""
    low, high = lengths(node)
    if low >= least and (most is None or (high is not None and high <= most)):
        return node
    exact = _adjusted(node, least, most)
    if exact is not None:
        return exact
    if most is None or low > most:
        return None
    grown = _grown(node, least - low)
    return None if grown is None or (lengths(grown)[0] > most) else _fitted(grown, most)


def _adjusted(node: Node, least: int, most: int | None) -> Node | None:
    """Adjusts its only part of variable length, if that repeats a part of fixed length."""
    parts = node.parts if isinstance(node, Concatenation) else (node,)
    fixed = [lengths(part) for part in parts]
    changing = [index for index, (low, high) in enumerate(fixed) if low != high]
    if len(changing) != 1:
        return None
    part = parts[changing[0]]
    if isinstance(part, Concatenation):
        inner = _adjusted_inner(part, fixed, changing[0], least, most)
        return (
            None
            if inner is None
            else Concatenation((*parts[: changing[0]], inner, *parts[changing[0] + 1 :]))
        )
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
    return Concatenation((*parts[: changing[0]], Repeat(part.part, fewest, top), *parts[changing[0] + 1 :]))


def _adjusted_inner(
    part: Concatenation, fixed: Sequence[tuple[int, int | None]], at: int, least: int, most: int | None
) -> Node | None:
    rest = sum(low for index, (low, _) in enumerate(fixed) if index != at)
    return _adjusted(part, max(0, least - rest), None if most is None else most - rest)


def _grown(node: Node, more: int) -> Node | None:
    """The expression with at least `more` more characters, all in one part; None if no part can grow."""
    if more <= 0:
        return node
    if isinstance(node, Repeat):
        size = lengths(node.part)[0]
        times = -(-more // size) if size else 0
        if size and (node.most is None or node.least + times <= node.most):
            return Repeat(node.part, node.least + times, node.most)
    if not isinstance(node, Concatenation):
        return None
    transitions = [
        (index, grown) for index, one in enumerate(node.parts) if (grown := _grown(one, more)) is not None
    ]
    if not transitions:
        return None
    return Alternation(
        tuple(
            Concatenation((*node.parts[:index], one, *node.parts[index + 1 :])) for index, one in transitions
        )
    )


def _fitted(node: Node, most: int) -> Node:
    """The expression with at most `most` characters; excludes some matches that would be possible."""
    match node:
        case Concatenation(parts):
            return Concatenation(_fitted_parts(parts, most))
        case Alternation(branches):
            return Alternation(
                tuple(_fitted(branch, most) for branch in branches if lengths(branch)[0] <= most)
            )
        case Repeat(part, least, top):
            low, high = lengths(part)
            size = max(low, 1) if low == high else max(low, isqrt(most), 1)
            count = max(least, most // size)
            count = count if top is None else min(count, top)
            return Repeat(_fitted(part, most // count) if count else part, least, count)
    return node


def _fitted_parts(parts: Sequence[Node], most: int) -> tuple[Node, ...]:
    """Distributes the characters beyond the minimum lengths over the parts."""
    if len(parts) > 1 and parts[0] == parts[-1] == ANY_TEXT:
        parts = parts[1:]  # two texts with a length together can be read in many ways, which is slow
    bounds = [lengths(part) for part in parts]
    spare = most - sum(low for low, _ in bounds)
    waiting = sorted(
        (index for index, (low, high) in enumerate(bounds) if low != high),
        key=lambda index: inf if bounds[index][1] is None else bounds[index][1] or 0,
    )
    fitted = list(parts)
    for number, index in enumerate(waiting):
        low, high = bounds[index]
        share = spare // (len(waiting) - number)
        share = share if high is None else min(share, high - low)
        fitted[index] = _fitted(parts[index], low + share)
        spare -= share
    return tuple(fitted)
