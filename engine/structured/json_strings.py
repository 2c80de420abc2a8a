"""The strings of a followed schema, said as rules or patterns that the compiler follows to the letter.

Its own way with lengths lets control characters through, its formats a 30th of February and addresses such as
001.02.3.4, and its patterns characters that a JSON string must escape. Found out with xgrammar 0.2.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.structured.json_lengths import bounded
from engine.structured.json_parts import Complaints
from engine.structured.json_texts import Text
from engine.structured.regex import (
    ANY_CHARACTER,
    ANY_TEXT,
    Chars,
    Node,
    Repeat,
    UnsupportedPattern,
    check_counts,
    confined,
    in_json,
    in_json_roughly,
    whole,
    written,
)
from engine.structured.regex_parser import parse
from engine.structured.string_rules import StringRules

# Words of ours in what is followed, until the strings are said: a Text; and that no type was named.
TEXT = "~text"
IMPLIED = "~implied"

# Before a pattern, a control character that never comes: with it, the compiler writes the pattern into the
# string as it stands. Its other way leaves escapes out and mixes up alternatives such as a{1,2}|[ab].
_AS_IT_STANDS = "\x01{0,0}"


def say_strings(schema: Any, rules: StringRules | None, complaints: Complaints) -> None:
    """In place, in a followed schema. `rules` takes what it can; None: strings stand without quotes."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        part.pop(IMPLIED, None)
        if isinstance(part.get(TEXT), Text):
            text = part.pop(TEXT)
            part |= _said(text, rules, complaints)
            continue
        waiting += [part[word] for word in ("items", "additionalProperties") if word in part]
        waiting += [one for word in ("anyOf", "prefixItems") for one in part.get(word, ())]
        waiting += [
            one
            for word in ("properties", "patternProperties", "$defs")
            for one in part.get(word, {}).values()
        ]


def _said(text: Text, rules: StringRules | None, complaints: Complaints) -> dict[str, Any]:
    if text.format is not None and not text.wanted:
        return {"type": "string", "format": text.format}
    try:
        if rules is None:
            return _bare(text, complaints)
        constant = _stand_in(text, rules)
        return {"const": constant} if constant else {"type": "string", "pattern": say_name(text, complaints)}
    except UnsupportedPattern as error:
        complaints.refuse(text.path, _word_of(text), f"can't be followed: {error}")
        return {"type": "string"}


def _stand_in(text: Text, rules: StringRules) -> str | None:
    length = text.length
    constant = _rule(rules, [*text.wanted, *([length] if length else [])], text.unwanted)
    if constant or len(text.wanted) != 1 or not text.least or text.most is None:
        return constant
    shorter = bounded(text.wanted[0], 0, text.most)  # then the least length alone is to be counted
    at_least = Repeat(Chars(ANY_CHARACTER), text.least, None)
    return None if shorter is None else _rule(rules, [shorter, at_least], text.unwanted)


def _rule(rules: StringRules, wanted: Sequence[Node], unwanted: Sequence[Node]) -> str | None:
    said = [in_json(node) for node in wanted or [ANY_TEXT]]
    unsaid = [in_json(node) for node in unwanted]
    left = [node for node in said if node is not None]
    if len(left) < len(said):
        return None
    return rules.stand_in(*left, unwanted=[node for node in unsaid if node is not None])


def say_name(text: Text, complaints: Complaints) -> str:
    """As a pattern, for names. Raises UnsupportedPattern."""
    left = in_json_roughly(_as_one(text, complaints))
    if left is None:
        raise UnsupportedPattern("it matches nothing, or only control characters that are not supported")
    check_counts(left)
    return f"^{_AS_IT_STANDS}({written(left)})$"


def _bare(text: Text, complaints: Complaints) -> dict[str, Any]:
    """Lengths alone the compiler follows by itself, where no quotes are."""
    if not text.wanted and not text.unwanted:
        most = {} if text.most is None else {"maxLength": text.most}
        return {"type": "string", "minLength": text.least, **most}
    return {"type": "string", "pattern": f"^{plain_text(_as_one(text, complaints))}$"}


def _as_one(text: Text, complaints: Complaints) -> Node:
    """One expression for all that is said, or for as much of it as must be."""
    if text.unwanted:
        complaints.refuse(text.path, "not", "can't be followed beside what else is said of this string")
    if len(text.wanted) > 1:
        complaints.refuse(
            text.path,
            "pattern",
            "beside another pattern or a format is too large to be followed: use one of them",
        )
    node = [*text.known, ANY_TEXT][0]
    one = bounded(node, text.least, text.most)
    if one is None:
        word = "minLength" if text.least else "maxLength"
        complaints.refuse(
            text.path, word, "beside this pattern or format can't be followed: say it in the pattern"
        )
        return node
    return one


def _word_of(text: Text) -> str:
    return "pattern" if text.wanted else "not" if text.unwanted else "maxLength"


def plain_pattern(pattern: str) -> str:
    """Of the texts that `pattern` matches from end to end, outside of JSON. Raises UnsupportedPattern."""
    return plain_text(whole(parse(pattern)))


def plain_text(node: Node) -> str:
    left = confined(node, ANY_CHARACTER)
    if left is None:
        raise UnsupportedPattern("it matches nothing")
    check_counts(left)
    return written(left)
