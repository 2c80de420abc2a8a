"""Parses regular expressions."""

from __future__ import annotations

from engine.structured.regex import (
    Alternation,
    Anchor,
    Chars,
    Concatenation,
    Node,
    Ranges,
    Repeat,
    UnsupportedPattern,
    complement,
    merged,
)

MAX_CHARS = 16 * 1024
_MAX_DEPTH = 50
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = (
    (0x09, 0x0D),
    (0x20, 0x20),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES = {
    "d": _DIGITS,
    "w": _WORD,
    "s": _SPACE,
    "D": complement(_DIGITS),
    "W": complement(_WORD),
    "S": complement(_SPACE),
}
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
_REPETITIONS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_REFUSED = {
    "b": "a word boundary",
    "B": "a word boundary",
    "p": "a Unicode property",
    "P": "a Unicode property",
    "k": "a back-reference",
} | dict.fromkeys("123456789", "a back-reference")


def parse(pattern: str) -> Node:
    """Raises UnsupportedPattern."""
    if len(pattern) > MAX_CHARS:
        raise UnsupportedPattern(f"it has {len(pattern)} characters; at most {MAX_CHARS} are supported")
    return _RegexParser(pattern).parse()


class _RegexParser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._alternation()
        if self._at < len(self._text):
            raise self._error("')' without '('")
        return node

    def _alternation(self) -> Node:
        branches = [self._concatenation()]
        while self._accept("|"):
            branches.append(self._concatenation())
        return branches[0] if len(branches) == 1 else Alternation(tuple(branches))

    def _concatenation(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._peek() not in "|)":
            parts.append(self._counted(self._atom()))
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _atom(self) -> Node:
        character = self._next()
        match character:
            case "^":
                return Anchor.START
            case "$":
                return Anchor.END
            case ".":
                return Chars(complement(_LINE_ENDS))
            case "(":
                return self._group()
            case "[":
                return self._class()
            case "\\":
                return Chars(self._escape())
            case "*" | "+" | "?":
                raise self._error(f"there is nothing before {character!r} to repeat")
        return Chars(_one(ord(character)))

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"groups are nested more than {_MAX_DEPTH} deep")
        if self._accept("?"):
            self._group_kind()
        node = self._alternation()
        if not self._accept(")"):
            raise self._error("a '(' is not closed")
        self._depth -= 1
        return node

    def _group_kind(self) -> None:
        """Read what follows `(?`: names of groups are ignored, and all else is refused."""
        if self._accept(":"):
            return
        if any(self._text.startswith(mark, self._at) for mark in ("=", "!", "<=", "<!")):
            raise self._error("look-around is not supported")
        self._accept("P")
        end = self._text.find(">", self._at)
        if not self._accept("<") or end < 0 or not self._text[self._at : end].isidentifier():
            raise self._error("flags and other kinds of groups are not supported")
        self._at = end + 1

    def _counted(self, node: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return node
        if isinstance(node, Anchor):
            raise self._error(f"{node.value} can't be repeated")
        self._accept("?")  # lazy or not: the same texts
        if self._at < len(self._text) and (self._peek() in "*+?" or self._bounds() is not None):
            raise self._error("a repetition can't be repeated: put it in a group")
        return Repeat(node, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        """Read `*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}`, if one is next. Any other `{` is text."""
        for mark, (fewest, greatest) in _REPETITIONS.items():
            if self._accept(mark):
                return fewest, greatest
        end = self._text.find("}", self._at)
        if self._at >= len(self._text) or self._peek() != "{" or end < 0:
            return None
        least, comma, most = self._text[self._at + 1 : end].partition(",")
        if not _is_number(least) or (most and not _is_number(most)):
            return None
        self._at = end + 1
        if max(len(least), len(most)) > 6:
            raise self._error("a count has more than six digits")
        bounds = (int(least), int(most) if most else None if comma else int(least))
        if bounds[1] is not None and bounds[0] > bounds[1]:
            raise self._error(f"the count {bounds[0]} is greater than {bounds[1]}")
        return bounds

    def _class(self) -> Node:
        is_negated = self._accept("^")
        ranges: list[tuple[int, int]] = []
        while not self._accept("]"):
            start = self._class_part()
            if self._is_range(start):
                self._next()
                end = self._class_part()
                if len(end) != 1 or end[0][0] != end[0][1] or end[0][0] < start[0][0]:
                    raise self._error("a range in [] is out of order")
                start = ((start[0][0], end[0][0]),)
            ranges.extend(start)
        return Chars(complement(merged(ranges)) if is_negated else merged(ranges))

    def _is_range(self, start: Ranges) -> bool:
        is_single = len(start) == 1 and start[0][0] == start[0][1]
        return (
            is_single and self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 :][:1] != "]"
        )

    def _class_part(self) -> Ranges:
        if self._at >= len(self._text):
            raise self._error("a '[' is not closed")
        character = self._next()
        if character != "\\":
            return _one(ord(character))
        if self._accept("b"):
            return _one(0x08)
        return self._escape()

    def _escape(self) -> Ranges:
        """Read what follows a backslash."""
        if self._at >= len(self._text):
            raise self._error("it ends with a backslash")
        character = self._next()
        if character in _CLASSES:
            return _CLASSES[character]
        if character in _CONTROLS:
            return _one(_CONTROLS[character])
        if character in _REFUSED:
            raise self._error(f"\\{character} ({_REFUSED[character]}) is not supported")
        if character == "x":
            return _one(self._hex(2))
        if character == "u":
            return _one(self._unicode())
        if character.isascii() and character.isalnum():
            raise self._error(f"\\{character} is not supported")
        return _one(ord(character))

    def _unicode(self) -> int:
        if self._accept("{"):
            end = self._text.find("}", self._at)
            code = self._hex(end - self._at) if 0 < end - self._at <= 6 else -1
            if not self._accept("}") or code > 0x10FFFF:
                raise self._error("\\u{} doesn't contain a code point")
            return code
        code = self._hex(4)
        if 0xD800 <= code < 0xDC00 and self._text.startswith("\\u", self._at):
            self._at += 2
            code = 0x10000 + ((code - 0xD800) << 10) + (self._hex(4) - 0xDC00)
        return code

    def _hex(self, length: int) -> int:
        digits = self._text[self._at : self._at + length]
        if len(digits) < length or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
            raise self._error(f"{length} hexadecimal digits are missing")
        self._at += length
        return int(digits, 16)

    def _peek(self) -> str:
        return self._text[self._at]

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _accept(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False

    def _error(self, what: str) -> UnsupportedPattern:
        return UnsupportedPattern(f"{what} (at character {self._at})")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _one(code: int) -> Ranges:
    return ((code, code),)
