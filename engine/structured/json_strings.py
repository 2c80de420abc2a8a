"""Writes the strings of a normalised schema as rules or patterns that the compiler enforces exactly.

Its own lengths let control characters through, its formats a 30th of February and addresses such as
001.02.3.4, and its patterns characters that a JSON string must escape. Found with xgrammar 0.2.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.structured.json_lengths import bounded
from engine.structured.json_parts import SchemaErrors
from engine.structured.json_texts import Text
from engine.structured.regex import (
    ANY_CHARACTER,
    ANY_TEXT,
    Chars,
    Node,
    Repeat,
    UnsupportedPattern,
    check_counts,
    full_match,
    in_json,
    in_json_roughly,
    restricted,
    to_pattern,
)
from engine.structured.regex_parser import parse
from engine.structured.string_rules import StringRules

# Our own words in a normalised schema, until its strings are written: a Text; and that no type was named.
TEXT = "~text"
IMPLIED = "~implied"

# A control character that never occurs, before a pattern: with it, the compiler copies the pattern into the
# string verbatim. Otherwise it omits escapes and confuses alternatives such as a{1,2}|[ab].
_VERBATIM = "\x01{0,0}"


def write_strings(schema: Any, rules: StringRules | None, errors: SchemaErrors) -> None:
    """Write a normalised schema's strings in place, as `rules` if possible; None: strings have no quotes."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        part.pop(IMPLIED, None)
        if isinstance(part.get(TEXT), Text):
            text = part.pop(TEXT)
            part |= _string_schema(text, rules, errors)
            continue
        waiting += [part[word] for word in ("items", "additionalProperties") if word in part]
        waiting += [child for word in ("anyOf", "prefixItems") for child in part.get(word, ())]
        waiting += [
            child
            for word in ("properties", "patternProperties", "$defs")
            for child in part.get(word, {}).values()
        ]


def _string_schema(text: Text, rules: StringRules | None, errors: SchemaErrors) -> dict[str, Any]:
    if text.format is not None and not text.wanted:
        return {"type": "string", "format": text.format}
    try:
        if rules is None:
            return _unquoted_schema(text, errors)
        constant = _stand_in(text, rules)
        return {"const": constant} if constant else {"type": "string", "pattern": name_pattern(text, errors)}
    except UnsupportedPattern as error:
        errors.refuse(text.path, _word_of(text), f"can't be enforced: {error}")
        return {"type": "string"}


def _stand_in(text: Text, rules: StringRules) -> str | None:
    length = text.length
    constant = _rule(rules, [*text.wanted, *([length] if length else [])], text.unwanted)
    if constant or len(text.wanted) != 1 or not text.least or text.most is None:
        return constant
    shorter = bounded(text.wanted[0], 0, text.most)  # then only the minimum length must be counted
    at_least = Repeat(Chars(ANY_CHARACTER), text.least, None)
    return None if shorter is None else _rule(rules, [shorter, at_least], text.unwanted)


def _rule(rules: StringRules, wanted: Sequence[Node], unwanted: Sequence[Node]) -> str | None:
    all_wanted = [in_json(node) for node in wanted or [ANY_TEXT]]
    all_unwanted = [in_json(node) for node in unwanted]
    left = [node for node in all_wanted if node is not None]
    if len(left) < len(all_wanted):
        return None
    return rules.stand_in(*left, unwanted=[node for node in all_unwanted if node is not None])


def name_pattern(text: Text, errors: SchemaErrors) -> str:
    """The text as a pattern for names. Raises UnsupportedPattern."""
    left = in_json_roughly(_as_one(text, errors))
    if left is None:
        raise UnsupportedPattern("it matches nothing, or only control characters that are not supported")
    check_counts(left)
    return f"^{_VERBATIM}({to_pattern(left)})$"


def _unquoted_schema(text: Text, errors: SchemaErrors) -> dict[str, Any]:
    """Without quotes, the compiler itself enforces lengths alone."""
    if not text.wanted and not text.unwanted:
        most = {} if text.most is None else {"maxLength": text.most}
        return {"type": "string", "minLength": text.least, **most}
    return {"type": "string", "pattern": f"^{plain_text(_as_one(text, errors))}$"}


def _as_one(text: Text, errors: SchemaErrors) -> Node:
    """One expression for all conditions, or for as many as are required."""
    if text.unwanted:
        errors.refuse(text.path, "not", "can't be enforced beside this string's other conditions")
    if len(text.wanted) > 1:
        errors.refuse(
            text.path,
            "pattern",
            "beside another pattern or a format is too large to be enforced: use only one of them",
        )
    node = [*text.known, ANY_TEXT][0]
    one = bounded(node, text.least, text.most)
    if one is None:
        word = "minLength" if text.least else "maxLength"
        errors.refuse(
            text.path, word, "beside this pattern or format can't be enforced: put it into the pattern"
        )
        return node
    return one


def _word_of(text: Text) -> str:
    return "pattern" if text.wanted else "not" if text.unwanted else "maxLength"


def plain_pattern(pattern: str) -> str:
    """A pattern of the texts that `pattern` matches entirely, outside of JSON. Raises UnsupportedPattern."""
    return plain_text(full_match(parse(pattern)))


def plain_text(node: Node) -> str:
    left = restricted(node, ANY_CHARACTER)
    if left is None:
        raise UnsupportedPattern("it matches nothing")
    check_counts(left)
    return to_pattern(left)
