"""Reads grammars in EBNF, as GBNF of llama.cpp and xgrammar write it, and writes them as Lark's.

In EBNF each character is a step of the grammar; the compiler instead splits a text into terminals, of which
each takes as much as it can. So every character becomes a terminal of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from engine.errors import InvalidRequest
from engine.structured.regex import Chars, complement, merged, to_pattern

_TOKEN = re.compile(
    r"""(?P<blank>(?:[ \t\r\n]|\#[^\n]*)+)
      | (?P<define>[A-Za-z_][\w.-]*\s*::=)
      | (?P<name>[A-Za-z_][\w.-]*)
      | (?P<text>"(?:[^"\\\n]|\\.)*")
      | (?P<class>\[(?:[^\]\\]|\\.)*\])
      | (?P<count>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
      | (?P<mark>[()|*+?.])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}
_MAX_DEPTH = 100


def to_lark(source: str, param: str) -> str:
    """Raises InvalidRequest for what isn't EBNF."""
    return _Reader(source, param).read()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class _Reader:
    def __init__(self, source: str, param: str) -> None:
        self._source = source
        self._param = param
        self._tokens = list(self._split())
        self._at = 0
        self._depth = 0
        self._used: dict[str, int] = {}
        self._defined: dict[str, None] = {}

    def read(self) -> str:
        lines = []
        while self._at < len(self._tokens):
            define = self._take("define")
            name = define.text.removesuffix("::=").strip()
            if name in self._defined:
                raise self._wrong(f"the rule {name!r:.40} is defined twice", define.at)
            self._defined[name] = None
            lines.append(f"{_rule(name)}: {self._choice()}")
        if "root" not in self._defined:
            raise self._wrong("there is no rule 'root', at which the output begins", len(self._source))
        for name, at in self._used.items():
            if name not in self._defined:
                raise self._wrong(f"the rule {name!r:.40} is not defined", at)
        return "\n".join([f"start: {_rule('root')}", *lines, ""])

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self._source):
            found = _TOKEN.match(self._source, at)
            if found is None or found.lastgroup is None:
                raise self._wrong(f"{self._source[at : at + 20]!r} is unexpected", at)
            if found.lastgroup != "blank":
                tokens.append(_Token(found.lastgroup, found[0], at))
            at = found.end()
        return tokens

    def _wrong(self, what: str, at: int) -> InvalidRequest:
        line = self._source.count("\n", 0, at) + 1
        return InvalidRequest(f"{self._param} can't be compiled: line {line}: {what}.", param=self._param)

    def _next(self) -> _Token:
        if self._at < len(self._tokens):
            return self._tokens[self._at]
        return _Token("end", "the end", len(self._source))

    def _take(self, kind: str, text: str | None = None) -> _Token:
        token = self._next()
        if token.kind != kind or text not in (None, token.text):
            wanted = text or {"define": "a rule (name ::= …)"}[kind]
            raise self._wrong(f"{token.text!r:.40} is where {wanted} should be", token.at)
        self._at += 1
        return token

    def _is(self, text: str) -> bool:
        token = self._next()
        return token.kind == "mark" and token.text == text

    def _choice(self) -> str:
        branches = [self._sequence()]
        while self._is("|"):
            self._at += 1
            branches.append(self._sequence())
        return " | ".join(branches)

    def _sequence(self) -> str:
        parts = []
        while (part := self._part()) is not None:
            parts.append(part)
        return " ".join(parts) or '""'

    def _part(self) -> str | None:
        token = self._next()
        match token.kind:
            case "name":
                self._used.setdefault(token.text, token.at)
                part = _rule(token.text)
            case "text":
                characters = [_literal(character) for character in _unescaped(token.text[1:-1])]
                part = f"({' '.join(characters)})" if len(characters) != 1 else characters[0]
                part = part if characters else '""'
            case "class":
                part = self._class(token)
            case "mark" if token.text == ".":
                part = r"/[^\n\r]/"
            case "mark" if token.text == "(":
                return self._counted(self._group())
            case _:
                return None
        self._at += 1
        return self._counted(part)

    def _group(self) -> str:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong(f"nested more than {_MAX_DEPTH} deep", self._next().at)
        self._at += 1
        inner = self._choice()
        self._take("mark", ")")
        self._depth -= 1
        return f"({inner})"

    def _counted(self, part: str) -> str:
        while True:
            token = self._next()
            if token.kind == "count" or (token.kind == "mark" and token.text in "*+?"):
                self._at += 1
                count = "".join(token.text.split())
                part = f"({part}){count}" if part[-1] in "*+?}" else part + count
            else:
                return part

    def _class(self, token: _Token) -> str:
        body = token.text[1:-1]
        is_negated = body.startswith("^")
        characters = list(_class_characters(body[is_negated:]))
        ranges = []
        while characters:
            first, _ = characters.pop(0)
            if len(characters) > 1 and characters[0] == ("-", True):
                last = characters[1][0]
                del characters[:2]
            else:
                last = first
            if first > last:
                raise self._wrong(f"{first}-{last} in {token.text!r:.40} is the wrong way round", token.at)
            ranges.append((ord(first), ord(last)))
        found = complement(merged(ranges)) if is_negated else merged(ranges)
        if not found:
            raise self._wrong(f"{token.text!r:.40} has no character", token.at)
        return f"/{to_pattern(Chars(found))}/"


def _rule(name: str) -> str:
    """A name that Lark takes for a rule, not a terminal."""
    return "r_" + re.sub(r"[^a-z0-9]", lambda found: f"_{ord(found[0]):x}_", name)


def _literal(character: str) -> str:
    return json.dumps(character)


def _unescaped(text: str) -> list[str]:
    return [character for character, _ in _class_characters(text)]


def _class_characters(text: str) -> list[tuple[str, bool]]:
    """The characters, and whether each is written as itself."""
    found = []
    for match in _ESCAPE.finditer(text):
        code = match[1] or match[2] or match[3]
        if code:
            found.append((chr(int(code, 16)), False))
        elif match[4]:
            found.append((_LETTERS.get(match[4], match[4]), False))
        else:
            found.append((match[5], True))
    return found
