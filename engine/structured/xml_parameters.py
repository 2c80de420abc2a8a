"""Arguments as Qwen's coders write them, `<parameter=name>` … `</parameter>`: texts bare, others as JSON."""

from __future__ import annotations

import json
from typing import Any

from engine.structured.json_strings import plain_pattern
from engine.structured.json_texts import FORMATS
from engine.structured.lark import (
    WHITESPACE,
    Part,
    Rules,
    either,
    literal,
    optional,
    regex,
    repeated,
    sequence,
    without,
)

_END = "</parameter>"
_ANY_NAME = "[a-zA-Z_][a-zA-Z0-9_]*"
_BLANK = Part(WHITESPACE, True)
_INTEGER = "-{0,1}(0|[1-9][0-9]*)"
_BARE = {  # types that are regular as long as nothing else limits them
    "boolean": "true|false",
    "null": "null",
    "integer": _INTEGER,
    "number": rf"{_INTEGER}(\.[0-9]+){{0,1}}([eE][+\-]{{0,1}}[0-9]+){{0,1}}",
}


def parameters_part(rules: Rules, schema: Any) -> Part:
    """The parameters of one call, by its normalised schema, an object."""
    return _Writer(rules, schema).parameters(schema if isinstance(schema, dict) else {"type": "object"})


class _Writer:
    def __init__(self, rules: Rules, root: Any) -> None:
        self._rules = rules
        self._definitions = root.get("$defs", {}) if isinstance(root, dict) else {}

    def parameters(self, schema: dict[str, Any]) -> Part:
        schema = self._resolved(schema)
        if "anyOf" in schema:
            return either(self._rules, [self.parameters(branch) for branch in schema["anyOf"]])
        required = schema.get("required", ())
        parts = [
            part if name in required else optional(part)
            for name, inner in schema.get("properties", {}).items()
            for part in [self._parameter(literal(name), inner)]
        ]
        for pattern, inner in schema.get("patternProperties", {}).items():
            names = regex(pattern.removeprefix("^").removesuffix("$"))
            parts.append(repeated(self._parameter(names, inner), 0, None))
        others = schema.get("additionalProperties", True)
        if others is not False:
            parts.append(repeated(self._parameter(regex(_ANY_NAME), others), 0, None))
        return sequence(self._rules, parts)

    def _parameter(self, name: Part, schema: Any) -> Part:
        begin = [_BLANK, literal("<parameter="), name, literal(">")]
        texts, others = self._values(schema)
        found = []
        if texts:
            found.append(sequence(self._rules, [*begin, either(self._rules, texts), literal(_END)]))
        if others:
            inner = {"anyOf": others, "$defs": self._definitions} if len(others) > 1 else others[0]
            inner = {**inner, "$defs": self._definitions} if self._definitions else inner
            parts = [*begin, _BLANK, self._rules.json(inner), _BLANK, literal(_END)]
            found.append(sequence(self._rules, parts))
        part = either(self._rules, found)
        return Part(self._rules.named(part), False)

    def _values(self, schema: Any) -> tuple[list[Part], list[Any]]:
        """The texts that the value may be, with the blanks around them, and schemas of other values."""
        if not isinstance(schema, dict) or not schema.keys() - {"$defs"}:
            return [without([_END])], []
        schema = self._resolved(schema)
        if isinstance(schema.get("type"), list):
            schema = {"anyOf": [{"type": name} for name in schema["type"]]}
        if "anyOf" in schema:
            both = [self._values(branch) for branch in schema["anyOf"]]
            texts = [text for found, _ in both for text in found]
            bare = [text for text in texts if text == without([_END])]
            return (bare[:1], []) if bare else (texts, [one for _, found in both for one in found])
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            written = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in values]
            return [self._between_blanks(either(self._rules, [literal(one) for one in written]))], []
        if schema.get("type") == "string":
            return [self._string(schema)], []
        if schema.keys() == {"type"} and schema["type"] in _BARE:
            return [self._between_blanks(Part(f"/{_BARE[schema['type']]}/", True))], []
        return [], [schema]

    def _string(self, schema: dict[str, Any]) -> Part:
        patterns = [one["pattern"] for one in (schema, *schema.get("allOf", ())) if "pattern" in one]
        patterns += [f"^({plain_pattern(FORMATS[schema['format']])})$"] if "format" in schema else []
        if "minLength" in schema or "maxLength" in schema:
            patterns.append(f"^(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})$")
        if not patterns:
            return without([_END])
        found = [str(regex(pattern.removeprefix("^").removesuffix("$"))) for pattern in patterns]
        text = Part(" & ".join([*found, str(without([_END]))]), True, is_single=False)
        return self._between_blanks(text)

    def _between_blanks(self, text: Part) -> Part:
        return sequence(self._rules, [_BLANK, text, _BLANK])

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        seen: set[str] = set()
        while "$ref" in schema and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            schema = self._definitions.get(schema["$ref"].rpartition("/")[2], {})
        return schema
