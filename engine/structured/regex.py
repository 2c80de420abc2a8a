"""Regular expressions as in JSON schemas (ECMA-262), rewritten so that the compiler enforces them.

The compiler has another dialect, with other classes and anchors. So a pattern is parsed, checked, and
rewritten with classes, groups and counts alone. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_NESTED_COUNT = 4096  # product of nested counts: beyond it, single steps take seconds
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_SPECIAL = frozenset("\\^$.|?*+()[]{}-/")

Ranges = tuple[tuple[int, int], ...]


class UnsupportedPattern(ValueError):
    """An expression that is malformed or can't be enforced; the message says why and where."""


class Anchor(StrEnum):
    START = "^"
    END = "$"


@dataclass(frozen=True, slots=True)
class Chars:
    """One character in sorted, inclusive ranges of code points."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Concatenation:
    """The parts one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    least: int
    most: int | None  # None = unbounded


Node = Chars | Concatenation | Alternation | Repeat | Anchor


def complement(ranges: Ranges) -> Ranges:
    """All other characters, without surrogates, which aren't characters."""
    taken = merged([*ranges, _SURROGATES])
    starts = [0, *(end + 1 for _, end in taken)]
    ends = [*(start - 1 for start, _ in taken), _LAST]
    return tuple((start, end) for start, end in zip(starts, ends, strict=True) if start <= end)


def merged(ranges: Sequence[tuple[int, int]]) -> Ranges:
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return tuple(out)


ANY_CHARACTER = complement(((0, 0),))  # a NUL ends the compiler's texts
ANY_TEXT = Repeat(Chars(ANY_CHARACTER), 0, None)


def full_match(pattern: Node) -> Node:
    """The expression for a match of the full_match text, without its outer `^` and `$`."""
    return _without_anchors(pattern, around=())


def search(pattern: Node) -> Node:
    """The expression of all texts that `pattern` matches somewhere, like `pattern` in a JSON schema."""
    return _without_anchors(pattern, around=(ANY_TEXT,))


def _without_anchors(pattern: Node, around: tuple[Node, ...]) -> Node:
    if isinstance(pattern, Alternation):
        return Alternation(tuple(_without_anchors(branch, around) for branch in pattern.branches))
    parts = pattern.parts if isinstance(pattern, Concatenation) else (pattern,)
    if len(parts) == 1 and isinstance(parts[0], Alternation):
        return _without_anchors(parts[0], around)
    before, after = around, around
    while parts and parts[0] is Anchor.START:
        parts, before = parts[1:], ()
    while parts and parts[-1] is Anchor.END:
        parts, after = parts[:-1], ()
    bare = Concatenation((*before, *parts, *after))
    if _has_anchor(bare):
        raise UnsupportedPattern("^ and $ are supported at the beginning and the end only")
    return bare


def _has_anchor(node: Node) -> bool:
    match node:
        case Concatenation(inner) | Alternation(inner):
            return any(map(_has_anchor, inner))
        case Repeat(part):
            return _has_anchor(part)
    return isinstance(node, Anchor)


def restricted(node: Node, allowed: Ranges) -> Node | None:
    """The expression restricted to these characters; None if nothing matches."""
    match node:
        case Chars(ranges):
            both = [(max(a, c), min(b, d)) for a, b in ranges for c, d in allowed]
            left = merged([(start, end) for start, end in both if start <= end])
            return Chars(left) if left else None
        case Concatenation(parts):
            inner = [restricted(part, allowed) for part in parts]
            kept = tuple(part for part in inner if part is not None)
            return Concatenation(kept) if len(kept) == len(inner) else None
        case Alternation(branches):
            possible = tuple(part for branch in branches if (part := restricted(branch, allowed)) is not None)
            return Alternation(possible) if possible else None
        case Repeat(part, least, most):
            left_part = restricted(part, allowed)
            if left_part is None:
                return Concatenation(()) if least == 0 else None
            return Repeat(left_part, least, most)
    return node


def check_counts(node: Node, outer: int = 1) -> None:
    """Raises UnsupportedPattern if nested counts make every step of the expression slow."""
    match node:
        case Concatenation(inner) | Alternation(inner):
            for part in inner:
                check_counts(part, outer)
        case Repeat(part, least, most):
            count = outer * max(1, least, most or 0)
            if outer > 1 and count > MAX_NESTED_COUNT:
                raise UnsupportedPattern(
                    f"nested counts repeat a part up to {count} times; the limit is {MAX_NESTED_COUNT}"
                )
            check_counts(part, count)


def to_pattern(node: Node) -> str:
    """The expression as text, with groups, classes, `|`, `*`, `+` and `{m,n}` only."""
    match node:
        case Chars(ranges):
            return _class_pattern(ranges)
        case Concatenation(parts):
            return "".join(
                _group(part) if isinstance(part, Alternation) else to_pattern(part) for part in parts
            )
        case Alternation(branches):
            texts = [to_pattern(branch) for branch in branches]
            filled = "|".join(text for text in texts if text)
            return filled if all(texts) or not filled else f"({filled}){{0,1}}"
        case Repeat(part, least, most):
            inner = to_pattern(part)
            if not inner or most == 0:
                return ""
            if most is None and least < 2:
                count = "+" if least else "*"
            else:
                count = f"{{{least},{'' if most is None else most}}}"
            return (inner if isinstance(part, Chars) else f"({inner})") + count
    raise UnsupportedPattern("^ and $ are supported at the beginning and the end only")


def _group(node: Node) -> str:
    inner = to_pattern(node)
    return f"({inner})" if inner else ""


def _class_pattern(ranges: Ranges) -> str:
    """Broad classes are to_pattern negated: otherwise the compiler errs if they are counted to 200."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char_pattern(ranges[0][0])
    if ranges[-1][1] == _LAST:
        starts = [0, *(end + 1 for _, end in ranges[:-1])]
        absent = [(a, b - 1) for a, (b, _) in zip(starts, ranges, strict=True) if a < b]
        absent = [one for one in absent if one != _SURROGATES]  # the compiler has no such characters
        return f"[^{_ranges_pattern(absent)}]" if absent else f"[{_ranges_pattern(ranges)}]"
    return f"[{_ranges_pattern(ranges)}]"


def _ranges_pattern(ranges: Sequence[tuple[int, int]]) -> str:
    return "".join(
        _char_pattern(start) if start == end else f"{_char_pattern(start)}-{_char_pattern(end)}"
        for start, end in ranges
    )


def _char_pattern(code: int) -> str:
    if code < 0x20 or 0x7F <= code < 0xA1 or 0xD800 <= code <= 0xDFFF:
        return f"\\u{code:04x}"
    character = chr(code)
    return f"\\{character}" if character in _SPECIAL else character
