"""Regular expressions as JSON schemas have them (ECMA-262), read here so that none is followed by halves.

The compiler takes some constructs for others (`(?i)` for text, `$` in the middle for nothing) and, in a JSON
string, a pattern's quote for the string's end. So a pattern is parsed, checked, confined to the characters
that may stand, and written again with constructs that are known to be followed. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_NESTED_COUNT = 4096  # of counts within counts, multiplied: beyond, single steps take seconds
_LAST = 0x10FFFF
_BROAD = 1000  # characters in a class that stands for text, such as `.`
_MAX_COUNTED_ESCAPES = 4
_SPECIAL = frozenset("\\^$.|?*+()[]{}-/")

Ranges = tuple[tuple[int, int], ...]


class UnsupportedPattern(ValueError):
    """An expression that is malformed or can't be followed; the message says what and where."""


class Edge(StrEnum):
    START = "^"
    END = "$"


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of sorted ranges of code points, ends included."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Run:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    least: int
    most: int | None  # None = without end


Node = Chars | Run | Choice | Repeat | Edge


def complement(ranges: Ranges) -> Ranges:
    """All characters but these; no halves of surrogate pairs, which are none."""
    taken = merged([*ranges, (0xD800, 0xDFFF)])
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
# What stands in a JSON string as it is: no quote, no backslash, no control character.
_UNESCAPED = complement(((0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\"))))
_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r"}
_IN_JSON = merged([*_UNESCAPED, *((ord(character), ord(character)) for character in _ESCAPES)])


def whole(pattern: Node) -> Node:
    """What the expression matches from the first character to the last, its outer `^` and `$` left out."""
    return _without_edges(pattern, around=())


def search(pattern: Node) -> Node:
    """The texts in which the expression matches somewhere, as `pattern` in a JSON schema means it."""
    return _without_edges(pattern, around=(ANY_TEXT,))


def _without_edges(pattern: Node, around: tuple[Node, ...]) -> Node:
    if isinstance(pattern, Choice):
        return Choice(tuple(_without_edges(branch, around) for branch in pattern.branches))
    parts = pattern.parts if isinstance(pattern, Run) else (pattern,)
    if len(parts) == 1 and isinstance(parts[0], Choice):
        return _without_edges(parts[0], around)
    before, after = around, around
    while parts and parts[0] is Edge.START:
        parts, before = parts[1:], ()
    while parts and parts[-1] is Edge.END:
        parts, after = parts[:-1], ()
    bare = Run((*before, *parts, *after))
    if _has_edge(bare):
        raise UnsupportedPattern("^ and $ are supported at the beginning and the end only")
    return bare


def _has_edge(node: Node) -> bool:
    match node:
        case Run(inner) | Choice(inner):
            return any(map(_has_edge, inner))
        case Repeat(part):
            return _has_edge(part)
    return isinstance(node, Edge)


def confined(node: Node, allowed: Ranges) -> Node | None:
    """What is left of it with these characters only; None if nothing is."""
    match node:
        case Chars(ranges):
            both = [(max(a, c), min(b, d)) for a, b in ranges for c, d in allowed]
            left = merged([(start, end) for start, end in both if start <= end])
            return Chars(left) if left else None
        case Run(parts):
            inner = [confined(part, allowed) for part in parts]
            kept = tuple(part for part in inner if part is not None)
            return Run(kept) if len(kept) == len(inner) else None
        case Choice(branches):
            possible = tuple(part for branch in branches if (part := confined(branch, allowed)) is not None)
            return Choice(possible) if possible else None
        case Repeat(part, least, most):
            left_part = confined(part, allowed)
            if left_part is None:
                return Run(()) if least == 0 else None
            return Repeat(left_part, least, most)
    return node


def in_json(node: Node) -> Node | None:
    """The same texts as they are written between a JSON string's quotes; None if there are none.

    Characters that need an escape of six characters (the rarer control characters) are left out.
    """
    left = confined(node, _IN_JSON)
    return None if left is None else _escaped(left, is_exact=True)


def in_json_roughly(node: Node) -> Node | None:
    """As `in_json`, but what is long and counted holds no escapes: the compiler takes its time over those."""
    left = confined(node, _IN_JSON)
    return None if left is None else _escaped(left, is_exact=False)


def _escaped(node: Node, *, is_exact: bool) -> Node:
    match node:
        case Chars():
            plain = confined(node, _UNESCAPED)
            letters = [
                (ord(letter), ord(letter))
                for character, letter in _ESCAPES.items()
                if confined(node, ((ord(character), ord(character)),)) is not None
            ]
            if not letters:
                return node
            escape = Run((Chars(((ord("\\"), ord("\\")),)), Chars(merged(letters))))
            return escape if plain is None else Choice((plain, escape))
        case Run(parts):
            return Run(tuple(_escaped(part, is_exact=is_exact) for part in parts))
        case Choice(branches):
            return Choice(tuple(_escaped(branch, is_exact=is_exact) for branch in branches))
        case Repeat(part, least, most):
            inner = _escaped(part, is_exact=is_exact)
            if not is_exact and isinstance(part, Chars) and isinstance(inner, Choice) and _is_broad(part):
                return _broad_repeat(inner, least, most)
            return Repeat(inner, least, most)
    return node


def _is_broad(chars: Chars) -> bool:
    return sum(end - start + 1 for start, end in chars.ranges) > _BROAD


def _broad_repeat(either: Choice, least: int, most: int | None) -> Node:
    """Text, plain or escaped, repeated in a form whose steps take the compiled grammar a tenth of the time.

    A choice between a character and an escape is slow wherever it is counted. So escapes are not counted:
    they come in what has no end, and else in short texts only. What comes follows the schema, but not all
    that the schema allows can come.
    """
    plain, escape = either.branches
    few = _MAX_COUNTED_ESCAPES
    if most is None:
        head = Repeat(either if least <= few else plain, least, least)
        more = Repeat(plain, 0, None)
        return Run((head, more, Repeat(Run((escape, more)), 0, None)))
    if most <= few:
        return Repeat(either, least, most)
    long = Repeat(plain, least, most)
    return long if least > few else Choice((long, Repeat(either, least, few)))


def check_counts(node: Node, outer: int = 1) -> None:
    """Raises UnsupportedPattern where counts within counts make the expression's every step long."""
    match node:
        case Run(inner) | Choice(inner):
            for part in inner:
                check_counts(part, outer)
        case Repeat(part, least, most):
            count = outer * max(1, least, most or 0)
            if outer > 1 and count > MAX_NESTED_COUNT:
                raise UnsupportedPattern(
                    f"counts within counts repeat a part up to {count} times; {MAX_NESTED_COUNT} are possible"
                )
            check_counts(part, count)


def written(node: Node) -> str:
    """As an expression of groups, classes, `|`, `*`, `+` and `{m,n}` only."""
    match node:
        case Chars(ranges):
            return _written_class(ranges)
        case Run(parts):
            return "".join(_group(part) if isinstance(part, Choice) else written(part) for part in parts)
        case Choice(branches):
            texts = [written(branch) for branch in branches]
            filled = "|".join(text for text in texts if text)
            return filled if all(texts) or not filled else f"({filled}){{0,1}}"
        case Repeat(part, least, most):
            inner = written(part)
            if not inner or most == 0:
                return ""
            if most is None and least < 2:
                count = "+" if least else "*"
            else:  # {0,1}, not `?`, with which the compiler errs
                count = f"{{{least},{'' if most is None else most}}}"
            return (inner if isinstance(part, Chars) else f"({inner})") + count
    raise UnsupportedPattern("^ and $ are supported at the beginning and the end only")


def _group(node: Node) -> str:
    inner = written(node)
    return f"({inner})" if inner else ""


def _written_class(ranges: Ranges) -> str:
    """Broad ones by what is not in them: the compiler errs with those it has to count to 200 otherwise."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _written_char(ranges[0][0])
    if ranges[-1][1] == _LAST:
        starts = [0, *(end + 1 for _, end in ranges[:-1])]
        absent = [(a, b - 1) for a, (b, _) in zip(starts, ranges, strict=True) if a < b]
        return f"[^{_written_ranges(absent)}]" if absent else f"[{_written_ranges(ranges)}]"
    return f"[{_written_ranges(ranges)}]"


def _written_ranges(ranges: Sequence[tuple[int, int]]) -> str:
    return "".join(
        _written_char(start) if start == end else f"{_written_char(start)}-{_written_char(end)}"
        for start, end in ranges
    )


def _written_char(code: int) -> str:
    if code < 0x20 or 0x7F <= code < 0xA1 or 0xD800 <= code <= 0xDFFF:
        return f"\\u{code:04x}"
    character = chr(code)
    return f"\\{character}" if character in _SPECIAL else character
